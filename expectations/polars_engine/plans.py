"""What metrics need computed, and the passes that compute many of them together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from expectations.polars_engine.domain import Domain, parse_domain


@dataclass(frozen=True)
class Batch:
    """The data of one batch.

    Attributes:
        frame: the data; a LazyFrame is read anew by each pass, in bounded memory.
        schema: its columns and their types.
        duplicates: row numbers of duplicates found so far, by columns and rows looked at.
        rows: rows fetched so far, by their numbers; kept for lazy frames alone.
    """

    frame: pl.DataFrame | pl.LazyFrame
    schema: pl.Schema
    duplicates: dict[tuple[str, ...], pl.Series] = field(default_factory=dict)
    rows: dict[tuple[int, ...], pl.DataFrame] = field(default_factory=dict)

    def select(self, expressions: Sequence[pl.Expr]) -> pl.DataFrame:
        """Evaluate expressions in one pass."""
        if isinstance(self.frame, pl.DataFrame):
            return self.frame.lazy().select(expressions).collect()
        return self.frame.select(expressions).collect(engine="streaming")

    def take(self, numbers: Sequence[int]) -> pl.DataFrame:
        """Return the rows of those numbers, which must ascend; NaN as null, for both are missing."""
        if isinstance(self.frame, pl.DataFrame):
            return self.frame[list(numbers)].fill_nan(None)
        key = tuple(numbers)
        if key not in self.rows:
            wanted = pl.lit(pl.Series(key, dtype=pl.UInt32)).implode()
            numbered = self.frame.with_row_index(_NUMBER).filter(pl.col(_NUMBER).cast(pl.UInt32).is_in(wanted))
            self.rows[key] = numbered.drop(_NUMBER).collect(engine="streaming").fill_nan(None)
        return self.rows[key]


@dataclass(frozen=True)
class Request:
    """One metric that is asked for.

    Attributes:
        batch: the data.
        keywords: the metric's domain as Great Expectations gives it.
        values: the metric's arguments.
        known: values of the metrics that it depends on, by name.
        most_rows: how many unexpected rows are listed at most.
    """

    batch: Batch
    keywords: Mapping[str, Any]
    values: Mapping[str, Any]
    known: Mapping[str, Any]
    most_rows: int

    def domain(self) -> Domain:
        """Return the rows and columns that it looks at."""
        return parse_domain(self.keywords, self.batch.schema)


@dataclass(frozen=True)
class Plan:
    """How a metric gets its value.

    Attributes:
        expressions: each gives one value; those of all metrics are evaluated in one pass.
        finish: makes the metric's value of theirs.
    """

    expressions: tuple[pl.Expr, ...]
    finish: Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Failure:
    """Why a metric has no value."""

    error: Exception


Builder = Callable[[Request], Plan]


def of_one(expression: pl.Expr) -> Plan:
    """Return a plan whose value is that of one expression."""
    return Plan((expression,), lambda values: values[0])


def known(value: Any) -> Plan:
    """Return a plan whose value needs no pass."""
    return Plan((), lambda _: value)


def compute(batch: Batch, plans: Sequence[Plan]) -> list[Any]:
    """Return the plans' values in order, a `Failure` where one has none.

    All expressions share one pass; only if that fails is each plan tried by itself.
    """
    try:
        rows = _evaluate(batch, plans)
    except Exception:  # one bad expression fails the pass; which, only single passes tell
        return [_alone(batch, plan) for plan in plans]
    return [_finish(plan, values) for plan, values in zip(plans, rows, strict=True)]


def try_empty(batch: Batch, plan: Plan) -> None:
    """Evaluate a plan on no rows, so that what cannot work shows before it spoils a pass."""
    if plan.expressions:
        batch.schema.to_frame().select(_named(plan.expressions))


_NUMBER = "__row_number"


def _evaluate(batch: Batch, plans: Sequence[Plan]) -> list[tuple[Any, ...]]:
    """Return the values of each plan's expressions, all from one pass."""
    expressions = [expression for plan in plans for expression in plan.expressions]
    values = iter(batch.select(_named(expressions)).row(0) if expressions else ())
    return [tuple(next(values) for _ in plan.expressions) for plan in plans]


def _alone(batch: Batch, plan: Plan) -> Any:
    """Return one plan's value by a pass of its own."""
    try:
        (values,) = _evaluate(batch, [plan])
    except Exception as exc:
        return Failure(exc)
    return _finish(plan, values)


def _finish(plan: Plan, values: tuple[Any, ...]) -> Any:
    """Return the metric's value, or why there is none."""
    try:
        return plan.finish(values)
    except Exception as exc:
        return Failure(exc)


def _named(expressions: Sequence[pl.Expr]) -> list[pl.Expr]:
    """Give expressions names of their own."""
    return [expression.alias(str(number)) for number, expression in enumerate(expressions)]
