"""Monitor: collect the targets' predictions, exactly once, and hold them against the lake.

Two questions: did the edge score the very windows that training would cut (bit for bit, by their hashes), and how far
were the predictions from what was then measured.
"""

import logging
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from prefect import task

from expectations.profiles import load_profile
from fieldloop.domain.errors import PayloadError
from fieldloop.domain.grid import DeviceGrid
from fieldloop.domain.predictions import unpack
from fieldloop.domain.readings import Messages, Named, Reason, Reject
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.domain.windows import cut, window_hash
from fieldloop.stores import broker, drain
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.landing import quarantine, times

APPLICATION = "monitor/predictions"
CONSUMER = "predictions"
KEY = ("release", "target", "device", "end_time")
AHEAD_US = 86_400_000_000  # by which a device's clock may be ahead; a time that is none would fail the whole batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
    """What one run brought in: new predictions, those already there, messages that were none."""

    predictions: int
    duplicates: int
    quarantined: int


@dataclass(frozen=True)
class TargetScore:
    """One target's predictions of one device by one release.

    Attributes:
        target: the gateway.
        device: whose windows.
        predictions: rows in table `predictions`.
        compared: of these, windows that the grid has too.
        identical: of these, windows whose bits are the same.
        judged: predictions that are numbers and for which the truth is known.
        mae: mean absolute error of these, unit of the target metric; None where there are none.
        bias: mean of prediction minus truth.
    """

    target: str
    device: str
    predictions: int
    compared: int
    identical: int
    judged: int
    mae: float | None
    bias: float | None


@dataclass(frozen=True)
class Monitored:
    """How a release does on its targets.

    Attributes:
        recipe: name of the recipe.
        release: digest of the release; None where none has predicted yet.
        unit: unit of the errors.
        collected: what this run brought in.
        scores: a row a target and device.
        predictions: the sum over them, and likewise `compared`, `identical` and `judged`.
        mae: over all judged predictions.
        r2: likewise, share of the truth's variance that is explained.
    """

    recipe: str
    release: str | None
    unit: str
    collected: Collected
    scores: tuple[TargetScore, ...]
    predictions: int
    compared: int
    identical: int
    judged: int
    mae: float | None
    r2: float | None


@task(name="collect predictions", retries=3, retry_delay_seconds=5, timeout_seconds=3600)
def collect_predictions(quiet_s: float) -> Collected:
    """Drain stream `predictions` into the lake."""
    return collect(Settings(), quiet_s)


@task(name="compare with the lake", retries=2, retry_delay_seconds=5, timeout_seconds=3600)
def compare_with_lake(recipe: str, collected: Collected) -> Monitored:
    """Hold the newest release's predictions against the windows and the truth in the lake."""
    return compare(Settings(), recipe, collected)


def collect(settings: Settings, quiet_s: float = 0) -> Collected:
    """Drain stream `predictions` into table `predictions`.

    Raises:
        StoreError: broker or lake cannot be reached.
    """
    lake = Lake(settings)
    figures = np.zeros(3, dtype=np.int64)

    def prepare(messages: Messages, subjects: Named) -> tuple[Messages, Named]:
        return messages, subjects

    def commit(batch: tuple[Messages, Named]) -> None:
        messages, subjects = batch
        rows, rejects = _decode(messages)
        transactions = {APPLICATION: int(messages.sequence[-1])}
        refused = quarantine(
            lake, lake.snapshot("quarantine"), messages, subjects, rejects, transactions, lambda _: APPLICATION
        )
        fresh = _new_predictions(lake, rows)
        lake.append("predictions", fresh, transactions)
        figures[:] += (len(fresh), len(rows) - len(fresh), refused)
        logger.info("%s predictions, %s already there, %s messages refused", *figures)

    after = lake.transaction("predictions", APPLICATION)
    drain.drain(settings, broker.PREDICTIONS, CONSUMER, after, prepare, commit, quiet_s)
    return Collected(*(int(figure) for figure in figures))


def compare(settings: Settings, recipe_name: str, collected: Collected) -> Monitored:
    """Compare the newest release's predictions with the newest grid: windows by their hashes, values with the truth.

    Raises:
        DocumentError: there is no such recipe.
        StoreError: predictions are there but no grid: *preprocess* has not run.
    """
    lake = Lake(settings)
    recipe = load_recipe(settings.root, recipe_name)
    unit = recipe.target_unit(load_profile(settings.root, recipe.profiles[0]))
    release = newest_release(lake)
    if release is None:
        return Monitored(recipe.name, None, unit, collected, (), 0, 0, 0, 0, None, None)
    predictions = lake.scan("predictions").filter(pl.col("release") == release).collect()
    judged = _with_truth(lake, recipe, predictions)
    error = pl.when(pl.col("value").is_finite()).then(pl.col("value") - pl.col("truth"))  # one NaN is not all others
    scores = (
        judged.group_by("target", "device")
        .agg(
            predictions=pl.len(),
            compared=pl.col("lake_hash").count(),
            identical=(pl.col("lake_hash") == pl.col("window_hash")).sum(),
            judged=error.count(),
            mae=error.abs().mean(),
            bias=error.mean(),
        )
        .sort("target", "device")
    )
    known = judged.drop_nulls("truth").filter(pl.col("value").is_finite())
    overall = known.select(mae=error.abs().mean(), residual=(error**2).sum(), spread=_spread("truth"))
    mae, residual, spread = overall.row(0)
    rows = tuple(TargetScore(*row) for row in scores.iter_rows())
    return Monitored(
        recipe=recipe.name,
        release=release,
        unit=unit,
        collected=collected,
        scores=rows,
        predictions=sum(row.predictions for row in rows),
        compared=sum(row.compared for row in rows),
        identical=sum(row.identical for row in rows),
        judged=sum(row.judged for row in rows),
        mae=mae,
        r2=1 - residual / spread if spread else None,
    )


def newest_release(lake: Lake) -> str | None:
    """Return the digest of the release that predicted last; None where none did."""
    newest = lake.scan("predictions").select(pl.col("release").sort_by("sequence").last()).collect()
    return newest.item() if len(newest) else None


def _spread(column: str) -> pl.Expr:
    return ((pl.col(column) - pl.col(column).mean()) ** 2).sum()


def _decode(messages: Messages) -> tuple[pl.DataFrame, list[Reject]]:
    """Return the rows of the messages, and those that are none."""
    frames = [pl.DataFrame(schema=SCHEMAS["predictions"])]
    rejects: list[Reject] = []
    arrival = times(messages.arrival_us)
    for row, payload in enumerate(messages.payloads):
        try:
            message = unpack(payload)
        except PayloadError as exc:
            rejects.append(Reject(row, None, Reason.UNDECODABLE, str(exc)))
            continue
        if message.target != messages.devices[row]:
            detail = f"the message names target `{message.target}`, its subject is `{messages.devices[row]}`'s"
            rejects.append(Reject(row, None, Reason.WRONG_DEVICE, detail))
            continue
        end_us, value, hashes = message.columns()
        if len(end_us) and not 0 <= end_us.min() <= end_us.max() <= messages.arrival_us[row] + AHEAD_US:
            detail = f"expected windows that ended from 1970 to a day from now, got {end_us.min()} to {end_us.max()} us"
            rejects.append(Reject(row, None, Reason.FUTURE, detail))
            continue
        columns = pl.DataFrame(
            {
                "device": message.owners(),
                "end_time": times(end_us),
                "value": value,
                "window_hash": hashes.view(np.int64),
            },
            schema_overrides={"device": pl.String},
        )
        frames.append(
            columns.with_columns(
                target=pl.lit(message.target),
                release=pl.lit(message.release),
                arrival_time=pl.lit(arrival[row]),
                sequence=pl.lit(int(messages.sequence[row])),
            ).select(pl.col(name).cast(kind) for name, kind in SCHEMAS["predictions"].items())
        )
    return pl.concat(frames), rejects


def _new_predictions(lake: Lake, rows: pl.DataFrame) -> pl.DataFrame:
    unique = rows.unique(KEY, keep="first", maintain_order=True)
    if len(unique):
        first, last = unique.select(pl.col("end_time").min(), last=pl.col("end_time").max()).row(0)
        stored = lake.scan("predictions").filter(pl.col("end_time").is_between(first, last))
        unique = unique.join(stored.select(KEY).collect(), on=KEY, how="anti")
    return unique.sort("device", "end_time")


def _with_truth(lake: Lake, recipe: Recipe, predictions: pl.DataFrame) -> pl.DataFrame:
    """Add `lake_hash` and `truth` to each prediction, null where the grid does not reach yet."""
    parts = [pl.DataFrame(schema={"device": pl.String, "end_time": SCHEMAS["predictions"]["end_time"],
                                  "lake_hash": pl.Int64, "truth": pl.Float32})]  # fmt: skip
    length, step_us = recipe.window.length, recipe.step_us
    known = lake.scan(f"windows/{recipe.name}").select("device", "end_time", truth=pl.col("target").fill_nan(None))
    for (device,), rows in predictions.group_by("device"):
        first, last = rows.select(pl.col("end_time").min(), last=pl.col("end_time").max()).row(0)
        grid = (
            lake.scan(f"grid/{recipe.name}")
            .filter(
                pl.col("device") == device,
                pl.col("step_time").is_between(first - pl.duration(microseconds=length * step_us), last),
            )
            .sort("step_time")
            .collect()
        )
        steps = grid["step_time"].to_physical().to_numpy() // step_us
        values = grid.select(recipe.inputs).to_numpy().T
        ends = np.unique(rows["end_time"].to_physical().to_numpy() // step_us)
        at = np.flatnonzero(np.isin(steps, ends))
        hashes = window_hash(cut(DeviceGrid(steps, values), at, length, step_us, recipe.clock))
        columns = {"device": device, "end_time": grid["step_time"][at], "lake_hash": hashes.view(np.int64)}
        truth = known.filter(pl.col("device") == device).collect()
        found = pl.DataFrame(columns, schema_overrides={"device": pl.String}).join(
            truth, on=["device", "end_time"], how="left"
        )
        parts.append(found.select(parts[0].columns).cast(parts[0].schema))
    return predictions.join(pl.concat(parts), on=["device", "end_time"], how="left")


def describe(monitored: Monitored) -> str:
    """Return the run as Markdown for a person."""
    if monitored.release is None:
        return "No release has predicted yet: run *deploy*, and let devices send."
    lines = [
        f"Release `{monitored.release[:12]}` of recipe `{monitored.recipe}`: {monitored.predictions:,} predictions.",
        "",
        f"**{monitored.identical:,} of {monitored.compared:,}** windows are bit for bit those of the lake.",
        "",
        f"| target | device | predictions | windows identical | MAE ({monitored.unit}) | bias |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s.target} | {s.device} | {s.predictions:,} | {s.identical:,} of {s.compared:,} | {_shown(s.mae)} "
        f"| {_shown(s.bias)} |"
        for s in monitored.scores
    ]
    return "\n".join(lines)


def figures(monitored: Monitored) -> dict[str, object]:
    """Return the sums as one flat row, for programs."""
    sums = {name: value for name, value in asdict(monitored).items() if name not in ("collected", "scores")}
    return {
        **sums,
        "targets": len({score.target for score in monitored.scores}),
        "new": monitored.collected.predictions,
    }


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
