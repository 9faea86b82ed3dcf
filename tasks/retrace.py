"""Retrace: what difference it makes to a model whether what arrived late is in its training, as of a past moment.

Both trainings are judged on the same windows as well: those that all readings give, late ones among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl
from prefect import task

from fieldloop.domain.metrics import judge
from fieldloop.domain.recipe import Metric, load_recipe
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.ancestry import Past
from tasks.examples import read
from tasks.matrix import apply
from tasks.preprocess import Preprocessed
from tasks.results import CandidateResult, TrainResult

_AGO: Final = timedelta(days=7)  # the moment where none is given


@dataclass(frozen=True)
class Side:
    """One of the two trainings.

    Attributes:
        readings: of the devices in it, that count.
        tables: grid and windows.
        algorithm: the best candidate.
        run_id: its run.
        metrics: on its own held-out windows.
        together: on those of the training with late readings.
    """

    readings: int
    tables: Preprocessed
    algorithm: str
    run_id: str
    metrics: Mapping[Metric, float]
    together: Mapping[Metric, float]


@dataclass(frozen=True)
class Retraced:
    """What late readings change.

    Attributes:
        recipe: the use case.
        moment: as of which both were trained.
        late: with what arrived after the moment.
        known: without.
        steps_changed: grid steps that only one of them has, or with other values.
        windows_changed: windows that only one of them has, or with another target.
    """

    recipe: str
    moment: datetime
    late: Side
    known: Side
    steps_changed: int
    windows_changed: int


@task(name="choose moment", timeout_seconds=60)
def moment_of(as_of: datetime | None) -> datetime:
    """Return the moment that is meant; as a task's result it stays the same when the flow is run again."""
    return as_of or datetime.now(UTC) - _AGO


@task(name="compare trainings", retries=1, timeout_seconds=3600)
def compare_trainings(
    moment: datetime,
    late_tables: Preprocessed,
    known_tables: Preprocessed,
    late: TrainResult,
    known: TrainResult,
) -> Retraced:
    """Hold the two trainings against each other."""
    return compare(Settings(), moment, (late_tables, late), (known_tables, known))


def compare(
    settings: Settings,
    moment: datetime,
    late: tuple[Preprocessed, TrainResult],
    known: tuple[Preprocessed, TrainResult],
) -> Retraced:
    """Count what differs between two trainings as of a moment, and judge both on the same windows.

    Args:
        settings: the installation.
        moment: the past moment.
        late: tables and training with what arrived after it.
        known: those without.

    Raises:
        StoreError: the lake or MLflow do not answer, or lack what the trainings left.
    """
    recipe, lake = load_recipe(settings.root, late[0].recipe), Lake(settings)
    found = read(lake, recipe, late[1].versions)
    test = found.chosen("test")

    def side(tables: Preprocessed, trained: TrainResult, past: Past) -> Side:
        best: CandidateResult = trained.best
        predicted = apply(registry.run_graph(settings, best.run_id), found, test)
        together = judge(recipe, found.target[test], predicted)
        return Side(_readings(lake, tables, past), tables, best.algorithm, best.run_id, best.metrics, together)

    return Retraced(
        recipe.name,
        moment,
        side(*late, Past(moment, late=True)),
        side(*known, Past(moment, late=False)),
        _changed(lake, f"grid/{recipe.name}", "step_time", late[0].grid_version, known[0].grid_version),
        _changed(lake, f"windows/{recipe.name}", "end_time", late[0].windows_version, known[0].windows_version),
    )


def describe(result: Retraced) -> str:
    """Return the comparison as Markdown for a person."""
    late, known = result.late, result.known
    rows = [("readings", f"{late.readings:,}", f"{known.readings:,}")]
    rows += [(f"devices in {result.recipe}", str(len(late.tables.devices)), str(len(known.tables.devices)))]
    rows += [
        (name, f"{getattr(late.tables, field):,}", f"{getattr(known.tables, field):,}")
        for name, field in (
            ("grid steps", "steps"), ("windows", "windows"), ("to train", "train"), ("to choose", "validation"),
            ("held out", "test"),
        )
    ]  # fmt: skip
    rows += [("best candidate", late.algorithm, known.algorithm)]
    rows += [
        (f"{name}, own held-out windows", f"{late.metrics[name]:.4g}", f"{known.metrics[name]:.4g}")
        for name in late.metrics
    ]
    rows += [
        (f"{name}, the same windows", f"{late.together[name]:.4g}", f"{known.together[name]:.4g}")
        for name in late.together
    ]
    return "\n".join(
        (
            f"Recipe `{result.recipe}` as of {result.moment:%Y-%m-%d %H:%M %Z}: nothing that happened later is in "
            "either training.",
            "",
            "| | with what arrived later | as it was known then |",
            "|---|---|---|",
            *(f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows),
            "",
            f"{late.readings - known.readings:,} readings arrived after that moment. They change "
            f"{result.steps_changed:,} grid steps and {result.windows_changed:,} windows (there or not, or their "
            "target). The same windows are those held out with all readings.",
        )
    )


def _readings(lake: Lake, tables: Preprocessed, past: Past) -> int:
    """How many readings of the devices count."""
    rows = lake.scan("readings", tables.readings_version).filter(
        pl.col("device").is_in(tables.devices), past.readings(lake)
    )
    return int(rows.select(pl.len()).collect(engine="streaming").item())


def _changed(lake: Lake, table: str, time: str, one: int, other: int) -> int:
    """Rows by device and time that one version alone has, or that differ between the two."""
    ours, theirs = lake.scan(table, one), lake.scan(table, other)
    keys = ["device", time]
    values = [name for name in ours.collect_schema().names() if name not in (*keys, "split")]
    marked = [each.with_columns(there=pl.lit(True)) for each in (ours, theirs)]
    joined = marked[0].join(marked[1], on=keys, how="full", coalesce=True)
    unlike = [pl.col(name).ne_missing(pl.col(f"{name}_right")) for name in ("there", *values)]
    return int(joined.select(pl.any_horizontal(unlike).sum()).collect(engine="streaming").item())
