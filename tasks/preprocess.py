"""Preprocess: the regular grid of a recipe's devices as a versioned table, and the index of its windows.

Nothing is cleaned here: plausible ranges and frozen runs are masks inside the model's graph, where the edge applies
them too. What is left out is what the edge would not have had: readings that came after their step was closed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prefect import task

from expectations.profiles import load_profile
from fieldloop.domain.errors import TrainingError
from fieldloop.domain.parts import NO_RUN, PARTS, parts, runs
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.domain.recipe.split import ByRun
from fieldloop.domain.windows import device_history
from fieldloop.stores import fleet
from fieldloop.stores.lake import TIME, Lake
from fieldloop.stores.settings import Settings
from tasks import labels
from tasks.cluster import connected, in_order


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


@task(name="build grid and windows", retries=2, retry_delay_seconds=5, timeout_seconds=3600, tags=["lake"])
def build_windows(recipe: str) -> Preprocessed:
    """Make the tables `grid/<recipe>` and `windows/<recipe>`."""
    return preprocess(Settings(), recipe)


def preprocess(settings: Settings, recipe_name: str) -> Preprocessed:
    """Make the grid and the windows' index of a recipe from the readings of the devices that passed validation.

    Raises:
        DocumentError: there is no such recipe or profile, or they do not fit.
        TrainingError: no device of the recipe's profiles has passed validation.
    """
    lake = Lake(settings)
    basis = _basis(settings, lake, load_recipe(settings.root, recipe_name))
    recipe = basis.recipe
    made = _newest(lake, recipe.name, basis.key)
    reused = made is not None
    if made is None:
        made = _make(lake, basis)
    counted = _counts(lake, recipe.name, *made)
    return Preprocessed(recipe.name, *made, basis.version, tuple(basis.profiles), basis.left_out, *counted, reused)


def cut_windows(settings: Settings, recipe: Recipe) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the grid and the windows' index that `preprocess` would write.

    Raises:
        DocumentError: recipe and profiles do not fit, or the labels cannot be read.
        TrainingError: no device of the recipe's profiles has passed validation.
    """
    lake = Lake(settings)
    return _cut(lake, _basis(settings, lake, recipe))


def device_grid(
    readings: pl.DataFrame, profile: Profile, recipe: Recipe, device: str, noted: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Put one device's readings (columns metric, event_time, value, sequence) onto its grid.

    Args:
        readings: all that count.
        profile: the device's.
        recipe: what a window is and what is predicted.
        device: its name.
        noted: labelled intervals, as `tasks.labels.read_labels` returns them.

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


@dataclass(frozen=True)
class _Validated:
    """How far a device's readings are validated: the position in the stream, and the replay out of quarantine."""

    sequence: int
    replay: int


@dataclass(frozen=True)
class _Basis:
    """What grid and windows follow from.

    Attributes:
        recipe: the use case.
        version: of table `readings`.
        profiles: of each device that counts.
        until: how far each of them is validated.
        noted: labelled intervals.
        left_out: devices of the recipe that did not pass validation.
        key: digest of all of this.
    """

    recipe: Recipe
    version: int
    profiles: Mapping[str, Profile]
    until: Mapping[str, _Validated]
    noted: pl.DataFrame
    left_out: tuple[str, ...]
    key: str


def _basis(settings: Settings, lake: Lake, recipe: Recipe) -> _Basis:
    """Look up what there is to make windows from."""
    profiles = {name: load_profile(settings.root, name) for name in recipe.profiles}
    enrolled = {name: profile for name, profile in fleet.devices(lake).items() if profile in profiles}
    members = {name: profile for name, profile in enrolled.items() if recipe.devices.takes(name)}
    passed = _passed(lake)
    chosen = sorted(set(members) & passed.keys())
    if not chosen:
        raise TrainingError(
            f"recipe {recipe.name}: no device of profile {', '.join(profiles)} has passed validation "
            f"({len(enrolled)} enrolled, {len(members)} of them taken by the recipe); bring readings in "
            "(flow `acquire` or `collect`) and run the flow `validate` first"
        )
    version = lake.version("readings")
    if version is None:
        raise TrainingError(f"recipe {recipe.name}: table `readings` does not exist; run the flow `acquire` first")
    until = {device: passed[device] for device in chosen}
    noted = labels.read_labels(settings, lake, recipe)
    key = _content_key(lake, version, recipe, profiles, until, noted)
    of_device = {device: profiles[members[device]] for device in chosen}
    return _Basis(recipe, version, of_device, until, noted, tuple(sorted(set(members) - passed.keys())), key)


def _passed(lake: Lake) -> dict[str, _Validated]:
    """Return the devices whose newest validation they passed, and how far it looked."""
    newest = lake.scan("validations").sort("validated_at").group_by("device").last().filter("passed")
    rows = newest.select("device", "last_sequence", "last_replay").collect().iter_rows()
    return {device: _Validated(sequence, replay) for device, sequence, replay in rows}


def _readings(lake: Lake, version: int, device: str, until: _Validated) -> pl.LazyFrame:
    """Return a device's validated readings."""
    return lake.scan("readings", version).filter(
        pl.col("device") == device, pl.col("sequence") <= until.sequence, pl.col("replay") <= until.replay
    )


def _content_key(
    lake: Lake,
    version: int,
    recipe: Recipe,
    profiles: Mapping[str, Profile],
    until: Mapping[str, _Validated],
    noted: pl.DataFrame,
) -> str:
    """Return a digest of everything that the tables follow from; unlike versions, re-sent readings do not change it."""
    schema = {"device": pl.String, "last": pl.Int64, "replayed": pl.Int64}
    limits = pl.LazyFrame([(name, each.sequence, each.replay) for name, each in until.items()], schema, orient="row")
    validated = lake.scan("readings", version).select("device", "sequence", "replay").join(limits, on="device")
    counted = validated.filter(pl.col("sequence") <= pl.col("last"), pl.col("replay") <= pl.col("replayed"))
    newest = pl.len(), pl.col("sequence").max(), pl.col("replay").max()
    found = counted.group_by("device").agg(newest).collect(engine="streaming")
    described = (recipe.digest, repr(sorted(profiles.items())), sorted(found.rows()), labels.fingerprint(noted))
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _newest(lake: Lake, recipe: str, key: str) -> tuple[int, int] | None:
    """Return the versions of grid and windows if the newest of both were made from this content."""
    versions = lake.version(f"grid/{recipe}"), lake.version(f"windows/{recipe}")
    keys = [lake.metadata(f"{table}/{recipe}")[:1] for table in ("grid", "windows")]
    if versions[0] is None or versions[1] is None or any(k != [{"content": key}] for k in keys):
        return None
    return versions[0], versions[1]


def _make(lake: Lake, basis: _Basis) -> tuple[int, int]:
    """Write grid and index; of readings and grid, one device at a time is in memory."""
    indices: list[pl.DataFrame] = []

    def grids() -> Iterator[pl.DataFrame]:
        for grid, index in _each_device(lake, basis):
            indices.append(index)
            yield grid

    name, metadata = basis.recipe.name, {"content": basis.key}
    grid_version = lake.replace(f"grid/{name}", grids(), metadata)
    windows = split_up(basis.recipe, pl.concat(indices))
    return grid_version, lake.replace(f"windows/{name}", windows, metadata)


def _cut(lake: Lake, basis: _Basis) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Make grid and index of all devices."""
    grids, indices = zip(*_each_device(lake, basis), strict=True)
    return pl.concat(grids), split_up(basis.recipe, pl.concat(indices))


def _each_device(lake: Lake, basis: _Basis) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Make grid and index of one device after the other, where the recipe says."""
    parts = (
        _Part(basis.recipe, device, profile, basis.version, basis.until[device], basis.noted)
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
    until: _Validated
    noted: pl.DataFrame


def _of_part(part: _Part) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Make grid and index of a device, on a worker."""
    return _made(Lake(Settings()), part)


def _made(lake: Lake, part: _Part) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = _readings(lake, part.version, part.device, part.until)
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
