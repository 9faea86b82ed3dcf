"""Preprocess: the regular grid of a recipe's devices as a versioned table, and the index of its windows.

Nothing is cleaned here: plausible ranges and frozen runs are masks inside the model's graph, where the edge applies
them too. What is left out is what the edge would not have had: readings that came after their step was closed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prefect import task

from fieldloop.domain.errors import StoreError
from fieldloop.domain.parts import NO_RUN, PARTS, parts, runs
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.domain.recipe.split import ByRun
from fieldloop.domain.windows import device_history
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import TIME
from tasks import ancestry, labels
from tasks.ancestry import Past, Validated
from tasks.basis import Basis, basis_of, readings_of
from tasks.cluster import connected, in_order
from tasks.examples import Versions


@dataclass(frozen=True)
class Preprocessed:
    """The tables made, by name and version, and what is in them.

    Attributes:
        recipe: name of the recipe.
        grid_version: version of table `grid/<recipe>`.
        windows_version: version of table `windows/<recipe>`.
        readings_version: version of `readings` that they were made from.
        devices: devices in them.
        left_out: devices of the recipe that did not pass validation.
        steps: rows of the grid.
        windows: windows in all.
        train: windows that train.
        validation: windows that choose among what was trained.
        test: windows that test.
        reused: whether nothing had changed since the tables were last made.
    """

    recipe: str
    grid_version: int
    windows_version: int
    readings_version: int
    devices: tuple[str, ...]
    left_out: tuple[str, ...]
    steps: int
    windows: int
    train: int
    validation: int
    test: int
    reused: bool


@task(name="build grid and windows", retries=2, retry_delay_seconds=5, timeout_seconds=3600)
def build_windows(recipe: str, as_of: datetime | None = None, include_late: bool = True) -> Preprocessed:
    """Make the tables `grid/<recipe>` and `windows/<recipe>`."""
    return preprocess(Settings(), recipe, None if as_of is None else Past(as_of, include_late))


def preprocess(settings: Settings, recipe_name: str, past: Past | None = None) -> Preprocessed:
    """Make the grid and the windows' index of a recipe from the readings of the devices that passed validation.

    Args:
        settings: the installation.
        recipe_name: the use case.
        past: the moment as of which they are made; of all that there is where None. Which devices passed validation
            is judged as it is known now.

    Raises:
        DocumentError: there is no such recipe or profile, or they do not fit.
        TrainingError: no device of the recipe's profiles has passed validation, or there is nothing as of that moment.
    """
    lake = Lake(settings)
    basis = basis_of(settings, lake, load_recipe(settings.root, recipe_name), past)
    recipe = basis.recipe
    made = _newest(lake, recipe.name, basis.key)
    reused = made is not None
    if made is None:
        made = _make(lake, basis)
    ancestry.enter(lake, basis.ancestry, Versions(*made))
    counted = _counts(lake, recipe.name, *made)
    return Preprocessed(recipe.name, *made, basis.version, tuple(basis.profiles), basis.left_out, *counted, reused)


def cut_windows(lake: Lake, basis: Basis) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the grid and the windows' index of all devices that `preprocess` would write."""
    grids, indices = zip(*_each_device(lake, basis), strict=True)
    return pl.concat(grids), split_up(basis.recipe, pl.concat(indices))


def device_grid(
    readings: pl.DataFrame, profile: Profile, recipe: Recipe, device: str, noted: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Put one device's readings (columns metric, event_time, value, sequence) onto its grid.

    Args:
        readings: all that count.
        profile: the device's.
        recipe: what a window is and what is predicted.
        device: its name.
        noted: labelled intervals, see `tasks.labels.Noted`.

    Returns:
        The grid (step_time, a column a channel, then what is read beside them), and the windows (end_time, run_time,
        target).
    """
    spec, beside = recipe.window_spec(profile), recipe.beside
    names = (*spec.channels, *beside)
    ordered = readings.sort("sequence", "event_time", "metric")
    codes = {metric: code for code, metric in enumerate(names)}
    grid, rows = device_history(
        ordered["metric"].replace_strict(codes, default=-1, return_dtype=pl.Int64).to_numpy(),
        ordered["event_time"].to_physical().to_numpy(),
        ordered["value"].to_numpy(),
        ordered["sequence"].to_numpy(),
        spec,
        tuple(recipe.channel(profile, metric).rule for metric in beside),
    )
    times = _moments(grid.steps * spec.step_us).alias("step_time")
    table = pl.DataFrame([times, *(pl.Series(name, grid.values[row]) for row, name in enumerate(names))])
    rows = rows[recipe.thinned(grid.steps[rows] * spec.step_us)]
    number = recipe.split.metric if isinstance(recipe.split, ByRun) else None
    begun = runs(recipe, grid.steps, None if number is None else grid.values[names.index(number)])[rows]
    windows = table[rows].select(
        end_time="step_time",
        run_time=_moments(begun).set(pl.Series(begun == NO_RUN), None),
        target=pl.Series(labels.targets(recipe, table, rows, device, noted)),
    )
    return table, windows


def _moments(us: NDArray[np.int64]) -> pl.Series:
    """UTC microseconds as times."""
    return pl.Series(us).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _newest(lake: Lake, recipe: str, key: str) -> tuple[int, int] | None:
    """Return the newest versions of grid and windows that were made from this content and can still be read."""
    found: list[int] = []
    for table in (f"grid/{recipe}", f"windows/{recipe}"):
        made = [commit.version for commit in lake.commits(table) if commit.metadata.get("content") == key]
        if not made:
            return None
        try:
            lake.require(table, made[0])
        except StoreError:  # deleted since: to be made anew
            return None
        found.append(made[0])
    return found[0], found[1]


def _make(lake: Lake, basis: Basis) -> tuple[int, int]:
    """Write grid and index; of readings and grid, one device at a time is in memory."""
    indices: list[pl.DataFrame] = []

    def grids() -> Iterator[pl.DataFrame]:
        for grid, index in _each_device(lake, basis):
            indices.append(index)
            yield grid

    name = basis.recipe.name
    grid_version = lake.replace(f"grid/{name}", grids(), basis.metadata)
    windows = split_up(basis.recipe, pl.concat(indices))
    return grid_version, lake.replace(f"windows/{name}", windows, basis.metadata)


def _each_device(lake: Lake, basis: Basis) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Make grid and index of one device after the other, where the recipe says."""
    parts = (
        _Part(basis.recipe, device, profile, basis.version, basis.until[device], basis.noted.intervals, basis.counted)
        for device, profile in basis.profiles.items()
    )
    with connected(lake.settings, basis.recipe) as client:
        yield from in_order(client, _of_part, parts) if client else (_made(lake, part) for part in parts)


@dataclass(frozen=True)
class _Part:
    """A device, as a worker of a cluster is told of it."""

    recipe: Recipe
    device: str
    profile: Profile
    version: int
    until: Validated
    noted: pl.DataFrame
    counted: pl.Expr | None


def _of_part(part: _Part) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Make grid and index of a device, on a worker."""
    return _made(Lake(Settings()), part)


def _made(lake: Lake, part: _Part) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = readings_of(lake, part.version, part.counted).filter(
        pl.col("device") == part.device,
        pl.col("sequence") <= part.until.sequence,
        pl.col("replay") <= part.until.replay,
    )
    readings = rows.select("metric", "event_time", "value", "sequence").collect()
    grid, index = device_grid(readings, part.profile, part.recipe, part.device, part.noted)
    named = pl.lit(part.device).alias("device")
    return grid.select(named, pl.all()), index.select(named, pl.all())


def split_up(recipe: Recipe, windows: pl.DataFrame) -> pl.DataFrame:
    """Add to an index of windows (device, end_time, run_time, target; sorted) the part that each belongs to."""
    devices = tuple(windows["device"].unique(maintain_order=True))
    codes = windows["device"].replace_strict(devices, range(len(devices)), return_dtype=pl.Int32).to_numpy()
    run_us = windows["run_time"].cast(TIME).to_physical().fill_null(NO_RUN).to_numpy()
    found = parts(recipe, devices, codes, windows["end_time"].to_physical().to_numpy(), run_us)
    return windows.with_columns(split=pl.Series(found.tolist(), dtype=pl.String))


def _counts(lake: Lake, recipe: str, grid_version: int, windows_version: int) -> tuple[int, int, int, int, int]:
    steps = lake.scan(f"grid/{recipe}", grid_version).select(pl.len()).collect().item()
    each = {part: (pl.col("split") == part).sum() for part in PARTS}
    windows = lake.scan(f"windows/{recipe}", windows_version).select(pl.len(), **each)
    return (steps, *windows.collect().row(0))


def describe(made: Preprocessed) -> str:
    """Return the run as Markdown for a person."""
    figures = asdict(made)
    rows = [
        ("devices", ", ".join(made.devices)),
        ("left out (validation)", ", ".join(made.left_out) or "–"),
        ("grid steps", f"{made.steps:,}"),
        *((name, f"{figures[name]:,}") for name in ("windows", *PARTS)),
        ("from", f"`readings` version {made.readings_version}"),
        ("tables", f"`grid/{made.recipe}` version {made.grid_version}, `windows/{made.recipe}` version "
                   f"{made.windows_version}{' (unchanged)' if made.reused else ''}"),
    ]  # fmt: skip
    return "\n".join(("| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)))
