"""How good a candidate is on the held-out windows: figures with intervals, by device and by period, and baselines."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from fieldloop.domain.bootstrap import Interval, blocks, intervals
from fieldloop.domain.metrics import judge, judge_each
from fieldloop.domain.recipe import Metric, Recipe
from fieldloop.domain.recipe.target import Anomaly, Class
from tasks.candidates.learner import Matrix
from tasks.fitting import Fitted

_DAY_US: Final = 86_400_000_000
# The longest period of which the held-out time has at least this many, so that a table stays short.
_PERIODS: Final = ((90 * _DAY_US, "month", "1mo"), (21 * _DAY_US, "week", "1w"), (3 * _DAY_US, "day", "1d"))


@dataclass(frozen=True)
class Evaluation:
    """Figures on the held-out windows.

    Attributes:
        metrics: of all of them.
        intervals: of these, see `domain.bootstrap`.
        blocks: in how many blocks windows were drawn.
        block: what one is.
        baselines: metrics of what needs no model, by its name.
        devices: a row a device: device, windows, a column a metric.
        periods: a row a period: its begin, windows, a column a metric.
    """

    metrics: dict[Metric, float]
    intervals: dict[Metric, Interval]
    blocks: int
    block: str
    baselines: dict[str, dict[Metric, float]]
    devices: pl.DataFrame
    periods: pl.DataFrame

    def figures(self) -> dict[str, float]:
        """Return what MLflow gets as metrics: each with the ends of its interval where there are any."""
        ends = {
            f"{name}.{end}": value
            for name, interval in self.intervals.items()
            for end, value in (("low", interval.low), ("high", interval.high))
            if not np.isnan(value)
        }
        beside = {
            f"baseline.{baseline}.{name}": value
            for baseline, figures in self.baselines.items()
            for name, value in figures.items()
        }
        return {
            **{str(name): value for name, value in self.metrics.items()},
            **ends,
            **beside,
            "blocks": float(self.blocks),
        }

    def tables(self) -> Mapping[str, bytes]:
        """Return the tables as CSV files, which MLflow shows, by name."""
        rows = [
            {"metric": name, "value": value, "low": self.intervals[name].low, "high": self.intervals[name].high}
            | {f"{baseline} (baseline)": figures[name] for baseline, figures in self.baselines.items()}
            for name, value in self.metrics.items()
        ]
        tables = {"metrics": pl.DataFrame(rows), "devices": self.devices, "periods": self.periods}
        return {f"{name}.csv": _csv(table) for name, table in tables.items()}


def evaluate(fitted: Fitted) -> Evaluation:
    """Judge a candidate's graph on the held-out windows."""
    recipe, found, test = fitted.recipe, fitted.found, fitted.test
    truth, predicted = fitted.truth, fitted.predicted
    of = blocks(recipe, found.device[test], found.end_us[test], found.run_us[test])
    devices = judge_each(recipe, truth, predicted, found.device[test])
    counts = np.bincount(found.device[test], minlength=len(found.devices))
    names = {"device": [found.devices[code] for code in devices], "windows": [int(counts[code]) for code in devices]}
    return Evaluation(
        judge(recipe, truth, predicted),
        intervals(recipe, truth, predicted, of),
        of.number,
        of.unit,
        {name: judge(recipe, truth, answers) for name, answers in baselines(fitted).items()},
        pl.DataFrame({**names, **_columns(recipe, devices)}),
        _by_period(fitted),
    )


def baselines(fitted: Fitted) -> dict[str, Matrix]:
    """Return what can be answered without a model for each held-out window, float32 [K, P], by name.

    The mean or the classes' shares of all windows that were learnt from, and the last value where the target is among
    the channels; for anomalies nothing.
    """
    recipe, found, number = fitted.recipe, fitted.found, len(fitted.test)
    learnt = np.concatenate([fitted.materials.train_target, fitted.materials.validation_target])
    match recipe.target:
        case Anomaly():
            return {}
        case Class():
            shares = np.bincount(learnt.astype(np.int64), minlength=len(recipe.classes)) / len(learnt)
            row = shares[1:] if recipe.width == 1 else np.append(float(shares.argmax()), shares)
            return {"class shares": np.tile(row.astype(np.float32), (number, 1))}
    mean = np.float32(learnt.mean(dtype=np.float64))
    answers = {"mean": np.full((number, 1), mean, dtype=np.float32)}
    if recipe.target.metric in recipe.inputs:
        last = found.newest(fitted.test)[recipe.inputs.index(str(recipe.target.metric))]
        answers["last value"] = np.where(np.isnan(last), mean, last).astype(np.float32)[:, None]
    return answers


def _by_period(fitted: Fitted) -> pl.DataFrame:
    end_us = fitted.found.end_us[fitted.test]
    span = int(np.ptp(end_us))
    name, every = next(((name, every) for least, name, every in _PERIODS if span >= least), ("hour", "1h"))
    begin = pl.Series(end_us).cast(pl.Datetime("us")).dt.truncate(every)
    periods, code, counts = np.unique(begin.to_physical().to_numpy(), return_inverse=True, return_counts=True)
    figures = judge_each(fitted.recipe, fitted.truth, fitted.predicted, code)
    shown = pl.Series(periods).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%d %H:%M" if name == "hour" else "%Y-%m-%d")
    return pl.DataFrame({name: shown, "windows": counts, **_columns(fitted.recipe, figures)})


def _columns(recipe: Recipe, figures: Mapping[int, Mapping[Metric, float]]) -> dict[str, list[float]]:
    return {name: [each[name] for each in figures.values()] for name in recipe.metrics()}


def _csv(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.with_columns(pl.selectors.float().fill_nan(None).round_sig_figs(6)).write_csv(buffer)
    return buffer.getvalue()
