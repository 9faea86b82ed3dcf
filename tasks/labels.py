"""The target of each window: a channel's value, a class, an anomaly or the time to an event, by the recipe's source."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fieldloop.domain.errors import DocumentError
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.recipe.target import UNIT_US, Anomaly, Class, Labels, TimeToEvent, Value
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import TIME

UNKNOWN: Final = np.float32("nan")
SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "device": pl.String,
    "start": TIME,
    "end": TIME,
    "label": pl.String,
}
_NO_LABELS: Final = pl.DataFrame(schema=SCHEMA)

Floats = NDArray[np.float32]
Micros = NDArray[np.int64]


@dataclass(frozen=True)
class Noted:
    """Labelled intervals, and where they come from.

    Attributes:
        intervals: device (null for all), start, end, label (null where there is none).
        source: the file as the recipe names it, or the version of a table, `faults@3`; empty where there are no labels.
        digest: SHA-256 of the file, or of what the table holds; empty where there are no labels.
    """

    intervals: pl.DataFrame
    source: str = ""
    digest: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """What the tables' commits say of it."""
        return {"labels": self.source, "labels_sha256": self.digest} if self.source else {}


def read_labels(settings: Settings, lake: Lake, recipe: Recipe) -> Noted:
    """Return the labelled intervals of a recipe.

    Raises:
        DocumentError: the source is missing, lacks a column, or has a time that cannot be read.
        StoreError: there is no such table.
    """
    source = recipe.labels
    if source is None:
        return Noted(_NO_LABELS)
    if source.table is not None:
        version = lake.version(source.table)
        intervals = _settled(lake.scan(source.table, version).collect(), source, f"table {source.table}")
        return Noted(intervals, f"{source.table}@{version}", fingerprint(intervals))
    name = str(source.file)
    data = _bytes(settings.root / name, recipe.name)
    return Noted(_settled(_parsed(name, data, recipe.name), source, name), name, hashlib.sha256(data).hexdigest())


def fingerprint(labels: pl.DataFrame) -> str:
    """Return a digest of the content."""
    return hashlib.sha256(labels.sort(labels.columns).write_csv().encode()).hexdigest()


def targets(recipe: Recipe, table: pl.DataFrame, rows: Micros, device: str, labels: pl.DataFrame) -> Floats:
    """Return the target of the windows that end at `rows` of a device's grid, NaN where it is unknown.

    Args:
        recipe: what is predicted.
        table: the device's grid: step_time, a column a metric.
        rows: [K] int64.
        device: its name.
        labels: intervals as `read_labels` returns them.
    """
    steps = table["step_time"].to_physical().to_numpy() // recipe.step_us
    ends = steps[rows]
    mine = labels.filter(pl.col("device").is_null() | (pl.col("device") == device)).sort("start")
    match recipe.target:
        case Value(metric=metric, horizon=horizon):
            return _at(steps, _column(table, metric), ends + horizon)
        case Class() as target if target.metric is not None:
            return _classes_of_channel(target, _at(steps, _column(table, target.metric), ends + target.horizon))
        case Class() as target:
            return _classes_of_intervals(recipe, target, ends, mine)
        case Anomaly() as target:
            return _anomalies(recipe, target, table, steps, ends, mine)
        case TimeToEvent() as target:
            return _times(recipe, target, table, steps, ends, mine)


def _classes_of_channel(target: Class, values: Floats) -> Floats:
    found = np.full(len(values), UNKNOWN, dtype=np.float32)
    for code, value in enumerate(dict(target.classes).values() if isinstance(target.classes, dict) else ()):
        found[values == np.float32(value)] = code
    return found


def _classes_of_intervals(recipe: Recipe, target: Class, ends: Micros, labels: pl.DataFrame) -> Floats:
    otherwise = UNKNOWN if target.otherwise is None else np.float32(target.names.index(target.otherwise))
    found = np.full(len(ends), otherwise, dtype=np.float32)
    last = ends + target.horizon
    first = ends + 1 if target.within and target.horizon else last
    for begin, end, label in _intervals(recipe, labels):
        if label not in target.names:
            raise DocumentError(
                f"recipe {recipe.name}: label {label!r} is none of the classes {', '.join(target.names)}: "
                "add it to target.classes, or mend the labels"
            )
        found[(begin <= last) & (end >= first)] = target.names.index(label)
    return found


def _anomalies(
    recipe: Recipe, target: Anomaly, table: pl.DataFrame, steps: Micros, ends: Micros, labels: pl.DataFrame
) -> Floats:
    if target.metric is not None:
        return _at(steps, _column(table, target.metric), ends)
    if target.labels is None:
        return np.full(len(ends), UNKNOWN, dtype=np.float32)
    found = np.zeros(len(ends), dtype=np.float32)
    for begin, end, _ in _intervals(recipe, labels):
        found[(begin <= ends) & (end >= ends)] = 1
    return found


def _times(
    recipe: Recipe, target: TimeToEvent, table: pl.DataFrame, steps: Micros, ends: Micros, labels: pl.DataFrame
) -> Floats:
    """Time from the end of the last step to the next event's begin; behind the last event only what the cap tells."""
    if target.at_end:
        begins, finishes = steps[-1:] + 1, steps[-1:] + 1
    elif target.metric is not None:
        begins, finishes = _stretches(steps, _column(table, target.metric) > 0)
    else:
        pairs = np.array([(begin, end) for begin, end, _ in _intervals(recipe, labels)], dtype=np.int64).reshape(-1, 2)
        begins, finishes = pairs[:, 0], pairs[:, 1]
    unit = recipe.step_us / UNIT_US[target.unit]
    following = np.searchsorted(begins, ends, side="right")
    known = following < len(begins)
    found = np.full(len(ends), UNKNOWN, dtype=np.float32)
    found[known] = (begins[following[known]] - ends[known] - 1) * unit
    if target.cap is not None:
        seen = ~known & ((steps[-1] - ends) * unit >= target.cap)
        found[seen] = target.cap
        found = np.minimum(found, np.float32(target.cap))
    for begin, end in zip(begins, finishes, strict=True):
        found[(begin <= ends) & (end >= ends)] = UNKNOWN
    return found


def _stretches(steps: Micros, on: NDArray[np.bool_]) -> tuple[Micros, Micros]:
    """First and last steps of the stretches in which a channel is on."""
    edges = np.diff(on.astype(np.int8), prepend=0, append=0)
    return steps[np.flatnonzero(edges == 1)], steps[np.flatnonzero(edges == -1) - 1]


def _at(steps: Micros, values: Floats, wanted: Micros) -> Floats:
    """Values at the wanted steps, NaN where the grid does not have them."""
    rows = np.minimum(np.searchsorted(steps, wanted), len(steps) - 1)
    return np.where(steps[rows] == wanted, values[rows], UNKNOWN).astype(np.float32)


def _column(table: pl.DataFrame, metric: str) -> Floats:
    return table[metric].cast(pl.Float32).fill_null(float("nan")).to_numpy()


def _intervals(recipe: Recipe, labels: pl.DataFrame) -> list[tuple[int, int, str | None]]:
    """First and last step of each interval, with its label; an interval without an end is a moment."""
    starts = labels["start"].to_physical().to_list()
    ends = labels["end"].to_physical().to_list()
    return [
        (start // recipe.step_us, (start if end is None else end) // recipe.step_us, label)
        for start, end, label in zip(starts, ends, labels["label"].to_list(), strict=True)
    ]


def _bytes(path: Path, recipe: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise DocumentError(f"recipe {recipe}: labels {path} cannot be read: {exc}") from exc


def _parsed(name: str, data: bytes, recipe: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(data) if name.endswith(".parquet") else pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError as exc:
        raise DocumentError(f"recipe {recipe}: labels {name} cannot be read: {exc}") from exc


def _settled(labels: pl.DataFrame, source: Labels, name: str) -> pl.DataFrame:
    """The columns that are known, in their types."""
    unknown = sorted(set(labels.columns) - set(SCHEMA))
    if "start" not in labels.columns or unknown:
        raise DocumentError(
            f"{name}: expected columns start, and where they are known end, device and label; "
            f"got {', '.join(labels.columns)}"
        )
    missing = [pl.lit(None, dtype=SCHEMA[column]).alias(column) for column in SCHEMA if column not in labels.columns]
    whole = labels.with_columns(missing).with_columns(pl.col("device", "label").cast(pl.String))
    times = [_time(whole, column, source.zone, name) for column in ("start", "end")]
    settled = whole.with_columns(times).select(*SCHEMA).cast(SCHEMA)  # type: ignore[arg-type]
    turned = settled.filter(pl.col("end") < pl.col("start"))
    if len(turned):
        raise DocumentError(f"{name}: interval {turned['start'][0]} to {turned['end'][0]} ends before it starts")
    return settled


def _time(labels: pl.DataFrame, column: str, zone: str, name: str) -> pl.Series:
    """A column of times in UTC; those without a zone are the source's."""
    values = labels[column]
    if values.dtype == pl.String:
        moments = [None if text is None else _moment(text, zone, f"{name}: column {column}") for text in values]
        return pl.Series(column, moments, dtype=TIME)
    naive = isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is None
    return values.dt.replace_time_zone(zone).dt.convert_time_zone("UTC") if naive else values


def _moment(text: str, zone: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).astimezone(UTC)
    except (ValueError, ZoneInfoNotFoundError) as exc:
        raise DocumentError(f"{where}: {text!r} is no time in zone {zone}; expected 2024-05-01T12:00:00Z") from exc
