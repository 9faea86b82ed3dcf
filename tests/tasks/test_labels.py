"""The targets of windows, from channels and from labelled intervals."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fieldloop.domain.document import load
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.recipe import Recipe
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.labels import SCHEMA, fingerprint, read_labels, targets
from tests.tasks.farm import TEXT, FarmSettings, farm

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
STEP = timedelta(minutes=10)
NAN = float("nan")


def recipe(target: str, name: str = "tiny") -> Recipe:
    """The farm's recipe with another target, split by device."""
    kind = "majority" if "class" in target else "pca" if "anomaly" in target else "mean"
    text = re.sub(r"candidates:\n(  .*\n)+promotion: .*\n", f"candidates: [{{algorithm: {kind}}}]\n", TEXT)
    text = re.sub(r"split: .*\n", "split: {by: device, test: [T9]}\n", text)
    return load(Recipe, text.replace("NAME", name).replace("{metric: active_power}", target), "r.yaml")


def table(*steps: int, **columns: list[float]) -> pl.DataFrame:
    """A grid with the given steps after noon."""
    times = pl.Series("step_time", [NOON + step * STEP for step in steps]).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame([times, *(pl.Series(name, values, dtype=pl.Float32) for name, values in columns.items())])


def intervals(*rows: tuple[str | None, int, int | None, str | None]) -> pl.DataFrame:
    """Labelled intervals: device, first and last step after noon, label."""
    moments = [(device, NOON + start * STEP, None if end is None else NOON + end * STEP, label)
               for device, start, end, label in rows]  # fmt: skip
    return pl.DataFrame(moments, schema=SCHEMA, orient="row")


def targets_of(target: str, grid: pl.DataFrame, labels: pl.DataFrame | None = None) -> list[float]:
    """Targets of windows that end at every step of device T1's grid."""
    noted = intervals() if labels is None else labels
    return targets(recipe(target), grid, np.arange(len(grid)), "T1", noted).tolist()


def same(found: list[float], expected: list[float]) -> None:
    """Compare, NaN with NaN."""
    np.testing.assert_allclose(found, expected)


def test_a_value_ahead() -> None:
    """The value so many steps later, unknown where that step is missing or nothing was read."""
    grid = table(0, 1, 2, 4, 5, active_power=[10, 11, 12, NAN, 15])
    same(targets_of("{metric: active_power}", grid), [10, 11, 12, NAN, 15])
    same(targets_of("{metric: active_power, horizon: 1}", grid), [11, 12, NAN, 15, NAN])


def test_a_channel_that_says_the_class() -> None:
    """Each class has its value; another value is no label."""
    grid = table(0, 1, 2, 3, active_power=[0, 5, 7, NAN])
    same(targets_of("{kind: class, metric: active_power, classes: {off: 0, on: 5}}", grid), [0, 1, NAN, NAN])


def test_intervals_that_say_the_class() -> None:
    """An interval covers its steps, for its device or for all; what none covers is `otherwise`, or unknown."""
    grid = table(*range(6))
    labels = intervals(("T1", 1, 2, "leak"), ("T2", 3, 3, "leak"), (None, 5, None, "block"))
    kind = "{kind: class, labels: {file: a.csv}, classes: [fine, leak, block], otherwise: fine"
    same(targets_of(kind + "}", grid, labels), [0, 1, 1, 0, 0, 2])
    same(targets_of(kind.replace(", otherwise: fine", "") + "}", grid, labels), [NAN, 1, 1, NAN, NAN, 2])
    same(targets_of(kind + ", horizon: 2}", grid, labels), [1, 0, 0, 2, 0, 0])
    same(targets_of(kind + ", horizon: 2, within: true}", grid, labels), [1, 1, 0, 2, 2, 0])


def test_a_label_that_is_no_class() -> None:
    """A label that the recipe does not know is named with those that it does."""
    kind = "{kind: class, labels: {file: a.csv}, classes: [fine, leak]}"
    with pytest.raises(DocumentError, match="label 'leek' is none of the classes fine, leak"):
        targets_of(kind, table(0, 1), intervals(("T1", 0, 1, "leek")))


def test_anomalies() -> None:
    """Intervals, or a channel, say where; without either nobody knows."""
    grid = table(0, 1, 2, active_power=[0, 1, NAN])
    same(targets_of("{kind: anomaly}", grid), [NAN, NAN, NAN])
    same(targets_of("{kind: anomaly, labels: {file: a.csv}}", grid, intervals(("T1", 1, 1, None))), [0, 1, 0])
    same(targets_of("{kind: anomaly, metric: active_power}", grid), [0, 1, NAN])


def test_time_to_the_next_event() -> None:
    """From the end of the last step to the event's begin; within it unknown, behind the last one too."""
    labels = intervals(("T1", 3, 4, None), ("T1", 7, None, None))
    grid = table(*range(10))
    kind = "{kind: time_to_event, labels: {file: a.csv}, unit: min"
    same(targets_of(kind + "}", grid, labels), [20, 10, 0, NAN, NAN, 10, 0, NAN, NAN, NAN])
    same(targets_of(kind + ", cap: 15}", grid, labels), [15, 10, 0, NAN, NAN, 10, 0, NAN, NAN, NAN])


def test_a_cap_tells_of_what_was_watched_long_enough() -> None:
    """Without an event for as long as the cap, the window is that far away at least; else nobody knows."""
    kind = "{kind: time_to_event, labels: {file: a.csv}, unit: min, cap: 30}"
    same(targets_of(kind, table(*range(5))), [30, 30, NAN, NAN, NAN])


def test_devices_that_ran_to_failure() -> None:
    """The end of the history is the event, and a channel can say so too."""
    same(targets_of("{kind: time_to_event, at_end: true, unit: min}", table(0, 1, 2, 3)), [30, 20, 10, 0])
    grid = table(0, 1, 2, 3, active_power=[0, 0, 1, 1])
    same(targets_of("{kind: time_to_event, metric: active_power, unit: min}", grid), [10, 0, NAN, NAN])


@pytest.fixture
def root(tmp_path: Path) -> FarmSettings:
    """A folder of its own, for label files; no service runs."""
    return farm(Settings(), tmp_path, "tiny")


def read(root: FarmSettings, text: str, **source: Any) -> pl.DataFrame:
    """The labels of a file with this text."""
    (root.root / "noted.csv").write_text(text)
    extra = "".join(f", {key}: {value}" for key, value in source.items())
    of = recipe(f"{{kind: anomaly, labels: {{file: noted.csv{extra}}}}}")
    return read_labels(root, Lake.__new__(Lake), of).intervals  # a file needs no lake


def test_times_with_and_without_a_zone(root: FarmSettings) -> None:
    """A zone in the time counts; a time without one is the source's."""
    text = "start,end\n2024-05-01T12:00:00Z,2024-05-01T14:30:00+02:00\n2024-05-01 14:00:00,\n"
    labels = read(root, text, zone="Europe/Berlin")
    assert labels["start"].to_list() == [NOON, NOON]
    assert labels["end"].to_list() == [NOON + 3 * STEP, None]
    assert labels["device"].null_count() == 2
    assert fingerprint(labels) == fingerprint(labels[::-1]) != fingerprint(labels[:1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("begin,end\n2024-05-01T12:00:00Z,\n", "expected columns start, .*; got begin, end"),
        ("start\nyesterday\n", "column start: 'yesterday' is no time in zone UTC; expected"),
        ("start,end\n2024-05-02T00:00:00Z,2024-05-01T00:00:00Z\n", "ends before it starts"),
    ],
)
def test_labels_that_cannot_be_read(root: FarmSettings, text: str, message: str) -> None:
    """A missing column, a time that is none and a turned interval are named."""
    with pytest.raises(DocumentError, match=message):
        read(root, text)


def test_labels_that_are_not_there(root: FarmSettings) -> None:
    """The path that was looked at is named."""
    of = recipe("{kind: anomaly, labels: {file: nowhere.csv}}")
    with pytest.raises(DocumentError, match=r"labels .*nowhere.csv cannot be read"):
        read_labels(root, Lake.__new__(Lake), of)
