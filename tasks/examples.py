"""The windows that a recipe learns from and is judged by: an index into the grid, cut in chunks when needed.

The index is checked against the recipe's split before anything trains, so a window that reaches into the held-out time
cannot be learnt from, whatever the stored table says.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnxruntime
import polars as pl
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import MASKED, ORDERED, WINDOW, batch_graphs
from fieldloop.domain.grid import DeviceGrid
from fieldloop.domain.parts import NO_RUN, PARTS, PartName, parts
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.windows import cut
from fieldloop.stores.lake import Lake

THREADS: Final = 2  # fixed, so that results do not depend on the machine
CHUNK_VALUES: Final = 131_072  # of windows cut and run at once: 1 MB in float64, what stays in a core's cache


@dataclass(frozen=True)
class Versions:
    """The table versions that examples come from."""

    grid: int
    windows: int


@dataclass(frozen=True)
class Examples:
    """Windows of several devices, by reference.

    Attributes:
        recipe: what a window is.
        devices: [D] names.
        grids: [D] their grids, input channels only.
        device: [N] int32, into `devices`, never decreasing.
        row: [N] int64, row of the device's grid at which the window ends, increasing within a device.
        end_us: [N] int64, UTC microseconds at which the last step begins.
        run_us: [N] int64, UTC microseconds at which the run that the window belongs to begins, see `domain.parts`.
        target: [N] float32, NaN where unknown.
        split: [N] "train", "validation", "test" or "" (embargo and later).
    """

    recipe: Recipe
    devices: tuple[str, ...]
    grids: tuple[DeviceGrid, ...]
    device: NDArray[np.int32]
    row: NDArray[np.int64]
    end_us: NDArray[np.int64]
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

    def windows(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cut the chosen windows ([K] increasing), float32 [K, R, T]."""
        borders = np.flatnonzero(np.diff(self.device[chosen])) + 1
        return np.concatenate([self._of_one_device(rows) for rows in np.split(chosen, borders)])

    def newest(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the input channels at the last step of the chosen windows ([K] increasing), float32 [C, K]."""
        device, row = self.device[chosen], self.row[chosen]
        parts = [grid.values[:, row[device == code]] for code, grid in enumerate(self.grids)]
        return np.concatenate(parts, axis=1)

    def chunks(self, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Split the chosen windows into parts small enough to be cut and run at once."""
        number = max(1, CHUNK_VALUES // (len(self.recipe.rows) * self.recipe.window.length))
        yield from (chosen[start : start + number] for start in range(0, len(chosen), number))

    def _of_one_device(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        recipe = self.recipe
        if not len(chosen):
            return np.zeros((0, len(recipe.rows), recipe.window.length), dtype=np.float32)
        grid = self.grids[int(self.device[chosen[0]])]
        return cut(grid, self.row[chosen], recipe.window.length, recipe.step_us, recipe.clock)


def read(lake: Lake, recipe: Recipe, versions: Versions) -> Examples:
    """Read grid and index at the given versions.

    Raises:
        StoreError: there is no such table or version.
        TrainingError: grid and index do not belong together, or the index does not keep to the recipe's split.
    """
    grid = lake.scan(f"grid/{recipe.name}", versions.grid).collect()
    index = lake.scan(f"windows/{recipe.name}", versions.windows).collect()
    return examples(recipe, grid, index)


def examples(recipe: Recipe, grid: pl.DataFrame, index: pl.DataFrame) -> Examples:
    """Join the index to the grid, and check both.

    Args:
        recipe: what a window is and how time is split.
        grid: device, step_time, a column a channel.
        index: device, end_time, run_time, target, split.

    Raises:
        TrainingError: as `read`.
    """
    index = index.sort("device", "end_time")
    missing = [metric for metric in recipe.inputs if metric not in grid.columns]
    if missing:
        raise TrainingError(
            f"grid/{recipe.name}: expected columns {', '.join(missing)}, got {', '.join(grid.columns)}; "
            "preprocess again"
        )
    devices = tuple(index["device"].unique(maintain_order=True))
    of_device = dict(grid.sort("device", "step_time").partition_by("device", as_dict=True))
    grids = tuple(_device_grid(recipe, name, of_device.get((name,))) for name in devices)
    codes = index["device"].replace_strict(devices, range(len(devices)), return_dtype=pl.Int32).to_numpy()
    end_us = index["end_time"].to_physical().to_numpy()
    found = Examples(
        recipe,
        devices,
        grids,
        codes,
        _rows(recipe, devices, grids, codes, end_us),
        end_us,
        index["run_time"].to_physical().fill_null(NO_RUN).to_numpy(),
        index["target"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
        index["split"].fill_null("").to_numpy().astype(np.str_),
    )
    _keep_to_split(found)
    return found


def apply(graph: bytes, found: Examples, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Run a graph over chosen windows in batch, with the bits of a window alone.

    Args:
        graph: ONNX, one input `window` float32 [N, R, T], first output float32 [N, F].
        found: the examples.
        chosen: [K] int64, increasing.

    Returns:
        [K, F] float32.
    """
    session = session_of(graph)
    return _over(found, chosen, session.get_outputs()[0].shape[1], partial(_run, session))


@dataclass(frozen=True)
class FeatureRun:
    """A recipe's features, ready to run.

    Attributes:
        width: F.
        run: windows float32 [N, R, T] → features float32 [N, F].
    """

    width: int
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]


def feature_run(recipe: Recipe) -> FeatureRun:
    """Build a recipe's features for batches: masks, sort along time, features."""
    graphs = batch_graphs(recipe)
    masks, families = (session_of(graph.SerializeToString()) for graph in (graphs.masks, graphs.features))

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        masked = _run(masks, windows)
        answer: NDArray[np.float32] = families.run(None, {MASKED: masked, ORDERED: np.sort(masked)})[0]
        return answer

    return FeatureRun(families.get_outputs()[0].shape[1], run)


def features(found: Examples, chosen: NDArray[np.int64], built: FeatureRun | None = None) -> NDArray[np.float32]:
    """Return the features of chosen windows ([K] int64, increasing), float32 [K, F], as the release graph gives them.

    Args:
        found: the examples.
        chosen: which of them.
        built: the recipe's features, where they are there already.
    """
    built = built or feature_run(found.recipe)
    return _over(found, chosen, built.width, built.run)


def _over(
    found: Examples,
    chosen: NDArray[np.int64],
    width: int,
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Cut and run chunk after chunk, several side by side; only the answers, [K, width], are all in memory."""
    answers = np.empty((len(chosen), width), dtype=np.float32)

    def fill(rows: NDArray[np.int64]) -> None:
        answers[rows] = run(found.windows(chosen[rows]))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, found.chunks(np.arange(len(chosen)))):
            pass
    return answers


def session_of(graph: bytes) -> onnxruntime.InferenceSession:
    """Return a session on one thread: several threads add up an ensemble's trees in another order than one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = session.run(None, {WINDOW: windows})[0]
    return answer


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


def _device_grid(recipe: Recipe, device: str, rows: pl.DataFrame | None) -> DeviceGrid:
    if rows is None:
        raise TrainingError(
            f"windows/{recipe.name}: device {device} is not in grid/{recipe.name}; "
            "give versions that were made together, or preprocess again"
        )
    columns = [rows[metric].cast(pl.Float32).fill_null(float("nan")).to_numpy() for metric in recipe.inputs]
    return DeviceGrid(rows["step_time"].to_physical().to_numpy() // recipe.step_us, np.stack(columns))


def _rows(
    recipe: Recipe,
    devices: tuple[str, ...],
    grids: tuple[DeviceGrid, ...],
    codes: NDArray[np.int32],
    end_us: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Row of its device's grid for each window's last step."""
    rows = np.zeros(len(codes), dtype=np.int64)
    steps = end_us // recipe.step_us
    for code, grid in enumerate(grids):
        of_device = codes == code
        rows[of_device] = np.searchsorted(grid.steps, steps[of_device])
        known = np.append(grid.steps, np.iinfo(np.int64).max)[rows[of_device]] == steps[of_device]
        if not known.all():
            raise TrainingError(
                f"windows/{recipe.name}: {np.count_nonzero(~known)} windows of device {devices[code]} end at steps "
                f"that grid/{recipe.name} does not have; give versions that were made together, or preprocess again"
            )
    return rows


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
