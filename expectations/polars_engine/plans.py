"""What metrics need computed, and the passes that compute many of them together."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import polars as pl

from expectations.polars_engine.domain import Domain, parse_domain
from expectations.polars_engine.masks import Masks, fingerprint


@dataclass(frozen=True)
class Batch:
    """The data of one batch.

    Attributes:
        frame: the data; a LazyFrame is read anew by each pass, in bounded memory.
        schema: its columns and their types.
        masks: those that expressions share.
        duplicates: row numbers of duplicates found so far, by columns and rows looked at.
        first_rows: the numbers of the first rows in which a mask is true, by its fingerprint, as far as they were
            found with their count.
        rows: rows fetched so far, by their numbers; kept for lazy frames alone.
    """

    frame: pl.DataFrame | pl.LazyFrame
    schema: pl.Schema
    masks: Masks = field(default_factory=Masks)
    duplicates: dict[tuple[bytes, ...], pl.Series] = field(default_factory=dict)
    first_rows: dict[bytes, list[int]] = field(default_factory=dict)
    rows: dict[tuple[int, ...], pl.DataFrame] = field(default_factory=dict)

    def select(self, expressions: Sequence[pl.Expr]) -> pl.DataFrame:
        """Evaluate expressions in one pass."""
        engine: Literal["in-memory", "streaming"] = "in-memory" if isinstance(self.frame, pl.DataFrame) else "streaming"
        return self.lazy(expressions).collect(engine=engine)

    def lazy(self, expressions: Sequence[pl.Expr]) -> pl.LazyFrame:
        """Select expressions, which may refer to shared masks."""
        return self.frame.lazy().with_columns(**self.masks.behind(expressions)).select(expressions)

    def rows_of(self, numbers: pl.Series, columns: Sequence[pl.Expr]) -> pl.DataFrame:
        """Return columns, which refer to the data alone, of the rows of those numbers, which must ascend."""
        named = [column.alias(str(number)) for number, column in enumerate(columns)]
        if isinstance(self.frame, pl.DataFrame):
            return self.frame[numbers].select(named)
        wanted = pl.col(_NUMBER).cast(numbers.dtype).is_in(pl.lit(numbers).implode())
        numbered = self.frame.select(named).with_row_index(_NUMBER).filter(wanted)
        return numbered.sort(_NUMBER).drop(_NUMBER).collect(engine="streaming")

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
        return parse_domain(self.keywords, self.batch.schema, self.batch.masks)


@dataclass(frozen=True)
class Plan:
    """How a metric gets its value.

    Attributes:
        expressions: each gives one value; those of all metrics are evaluated in one pass.
        finish: makes the metric's value of theirs.
        enough: of a plan that looks for the first rows of a kind, whether those of the data's first rows are all that
            it needs; None where every row has to be seen.
        beside: work that no expression can say, begun beside the pass where data is in memory; `finish` asks for it
            again, which costs nothing then.
    """

    expressions: tuple[pl.Expr, ...]
    finish: Callable[[tuple[Any, ...]], Any]
    enough: Callable[[tuple[Any, ...]], bool] | None = None
    beside: Callable[[], object] | None = None


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

    All expressions share one pass; those that look for first rows, of data in memory, share one over the data's
    beginning, and go on from there only where that is not enough. What cannot work mostly shows on no rows already,
    and is kept out of it; what shows on the data only costs each plan a pass of its own.
    """
    failed = _failures(Batch(batch.schema.to_frame(), batch.schema, batch.masks), plans)
    sound = [plan for number, plan in enumerate(plans) if number not in failed]
    try:
        with _working_beside(batch, sound):
            rows = iter(_first_rows(batch, sound))
    except Exception:
        rest = iter([_alone(batch, plan) for plan in sound])
    else:
        rest = iter([_finish(plan, next(rows)) for plan in sound])
    return [failed[number] if number in failed else next(rest) for number in range(len(plans))]


_NUMBER = "__row_number"
_BEGINNING_ROWS = 1 << 17
_BEGINNING_GROWTH = 4


def _failures(nothing: Batch, plans: Sequence[Plan]) -> dict[int, Failure]:
    """Return the plans, by number, whose expressions fail even on no rows."""
    try:
        _evaluate(nothing, plans)
    except Exception:
        outcomes = {number: _failure(nothing, plan) for number, plan in enumerate(plans)}
        return {number: failure for number, failure in outcomes.items() if failure}
    return {}


def _failure(nothing: Batch, plan: Plan) -> Failure | None:
    """Return why a plan's expressions fail on no rows."""
    try:
        _evaluate(nothing, [plan])
    except Exception as exc:
        return Failure(exc)
    return None


@contextlib.contextmanager
def _working_beside(batch: Batch, plans: Sequence[Plan]) -> Iterator[None]:
    """Do the plans' own work beside the pass: it sorts in one thread for long.

    Data that is read goes through one pass at a time, so that no more of it is in memory. What fails here fails again
    where the plan is finished, and is told there.
    """
    works = [plan.beside for plan in plans if plan.beside] if isinstance(batch.frame, pl.DataFrame) else []
    with ThreadPoolExecutor(max_workers=1) as thread:
        for work in works:
            thread.submit(work)
        yield


def _first_rows(batch: Batch, plans: Sequence[Plan]) -> list[tuple[Any, ...]]:
    """Return the values of each plan's expressions, from as many of the data's first rows as they need."""
    found: dict[int, tuple[Any, ...]] = {}
    for beginning in _beginnings(batch):
        some = replace(batch, frame=beginning)
        seekers = {number: plan.enough for number, plan in enumerate(plans) if plan.enough and number not in found}
        values = dict(zip(seekers, _evaluate(some, [plans[number] for number in seekers]), strict=True))
        found |= {number: row for number, row in values.items() if seekers[number](row)}
    rest = {number: plan for number, plan in enumerate(plans) if number not in found}
    found |= zip(rest, _evaluate(batch, list(rest.values())), strict=True)
    return [found[number] for number in range(len(plans))]


def _beginnings(batch: Batch) -> Iterator[pl.DataFrame]:
    """Yield longer and longer beginnings of data in memory."""
    rows = _BEGINNING_ROWS
    while isinstance(batch.frame, pl.DataFrame) and rows < batch.frame.height:
        yield batch.frame.head(rows)
        rows *= _BEGINNING_GROWTH


def _evaluate(batch: Batch, plans: Sequence[Plan]) -> list[tuple[Any, ...]]:
    """Return the values of each plan's expressions, all from one pass, in which each expression is evaluated once."""
    keys = [[fingerprint(expression) for expression in plan.expressions] for plan in plans]
    expressions = [expression for plan in plans for expression in plan.expressions]
    distinct = dict(zip((key for own in keys for key in own), expressions, strict=True))
    if not distinct:
        return [() for _ in plans]
    named = [expression.alias(str(number)) for number, expression in enumerate(distinct.values())]
    values = dict(zip(distinct, batch.select(named).row(0), strict=True))
    return [tuple(values[key] for key in own) for own in keys]


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
