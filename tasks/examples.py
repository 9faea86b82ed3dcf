"""The windows that a recipe learns from and is judged by: an index into the grid, cut in chunks when needed.

The index is checked against the recipe's split before anything trains, so a window that reaches into the held-out time
cannot be learnt from, whatever the stored table says.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.parts import NO_RUN, PARTS, PartName, parts
from fieldloop.domain.recipe import Recipe
from fieldloop.stores.lake import Lake
from tasks.cutting import Cuts
from tasks.grids import Grids, LakeGrids, device_grids, look_up, require_channels, require_devices


@dataclass(frozen=True)
class Versions:
    """The table versions that examples come from."""

    grid: int
    windows: int


@dataclass(frozen=True)
class Examples(Cuts):
    """Windows with what is known of them.

    Attributes:
        run_us: [N] int64, UTC microseconds at which the run that the window belongs to begins, see `domain.parts`.
        target: [N] float32, NaN where unknown.
        split: [N] "train", "validation", "test" or "" (embargo and later).
    """

    run_us: NDArray[np.int64]
    target: NDArray[np.float32]
    split: NDArray[np.str_]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """[N] bool: the target is known, or nobody asks for it: anomalies are learnt without labels."""
        return ~np.isnan(self.target) | (self.recipe.target.kind == "anomaly")

    def chosen(self, part: PartName) -> NDArray[np.int64]:
        """Return the usable examples of one part of the split."""
        return np.flatnonzero((self.split == part) & self.usable)

    def counts(self) -> dict[str, int]:
        """Return how many windows are in each part, in the embargo or after it, or have no target."""
        usable = self.usable
        return {
            **{part: len(self.chosen(part)) for part in PARTS},
            "embargo": int(np.count_nonzero((self.split == "") & usable)),
            "no_target": int(np.count_nonzero(~usable)),
        }


def read(lake: Lake, recipe: Recipe, versions: Versions) -> Examples:
    """Read the index at its version; grids are read when windows are cut from them.

    Raises:
        StoreError: there is no such table or version.
        TrainingError: grid and index do not belong together, or the index does not keep to the recipe's split.
    """
    index = lake.scan(f"windows/{recipe.name}", versions.windows).sort("device", "end_time").collect()
    devices = tuple(index["device"].unique(maintain_order=True))
    return _indexed(recipe, index, devices, LakeGrids(lake, look_up(lake, recipe, versions.grid, devices)))


def examples(recipe: Recipe, grid: pl.DataFrame, index: pl.DataFrame) -> Examples:
    """Join an index to a grid that is in memory, and check both.

    Args:
        recipe: what a window is and how time is split.
        grid: device, step_time, a column a channel.
        index: device, end_time, run_time, target, split.

    Raises:
        TrainingError: as `read`.
    """
    index = index.sort("device", "end_time")
    devices = tuple(index["device"].unique(maintain_order=True))
    require_channels(recipe, grid.columns)
    require_devices(recipe, devices, dict(grid["device"].value_counts().iter_rows()))
    found = _indexed(recipe, index, devices, device_grids(recipe, devices, grid))
    for code, mine in found.by_device(np.arange(len(index))):
        found.rows(code, mine)
    return found


def _indexed(recipe: Recipe, index: pl.DataFrame, devices: tuple[str, ...], grids: Grids) -> Examples:
    found = Examples(
        recipe,
        devices,
        grids,
        index["device"].replace_strict(devices, range(len(devices)), return_dtype=pl.Int32).to_numpy(),
        index["end_time"].to_physical().to_numpy(),
        index["run_time"].to_physical().fill_null(NO_RUN).to_numpy(),
        index["target"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
        index["split"].fill_null("").to_numpy().astype(np.str_),
    )
    _keep_to_split(found)
    return found


def spread_out(features: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """Choose rows evenly over all, a quarter of them from those with a missing feature as far as there are any.

    Args:
        features: [K, F] float32.
        number: how many at most.

    Returns:
        [n] int64, increasing, n ≤ number.
    """
    gaps = np.flatnonzero(np.isnan(features).any(axis=1))
    some = _evenly(gaps, number // 4)
    rest = np.setdiff1d(np.arange(len(features)), some)
    return np.sort(np.append(some, _evenly(rest, number - len(some))))


def _evenly(rows: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    if len(rows) <= number:
        return rows
    return rows[np.arange(number) * len(rows) // number]


def _keep_to_split(found: Examples) -> None:
    """Refuse an index in which a window stands on a side of the split where it does not belong."""
    allowed = parts(found.recipe, found.devices, found.device, found.end_us, found.run_us)
    wrong = np.flatnonzero((found.split != "") & (found.split != allowed))
    if not len(wrong):
        return
    worst = wrong[np.argmax(found.end_us[wrong])]
    end = np.datetime64(int(found.end_us[worst]), "us")
    raise TrainingError(
        f"windows/{found.recipe.name}: {len(wrong)} windows are on the wrong side of the split, for instance device "
        f"{found.devices[found.device[worst]]} at {end}Z: expected '{allowed[worst]}', got '{found.split[worst]}' "
        f"(by {found.recipe.split.by}, with an embargo of the window's length and of what its target looks ahead); "
        "preprocess again"
    )
