"""Which groups the rows that do not fit belong to: an expectation's unexpected count, group by group, in one pass."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import polars as pl
from great_expectations.expectations.expectation import Expectation

from expectations.polars_engine.domain import require
from expectations.polars_engine.errors import UnsupportedError
from expectations.polars_engine.metrics.maps import Finding, RowByRow
from expectations.polars_engine.plans import Batch, Request
from expectations.polars_engine.registration import QUESTIONS


def unexpected_by(
    frame: pl.DataFrame | pl.LazyFrame, column: str, wanted: Sequence[Expectation]
) -> list[dict[Any, int]]:
    """Count the rows that do not fit by the values of a column; the counts add up to Great Expectations' own.

    Args:
        frame: the data.
        column: whose values name the groups.
        wanted: expectations on rows.

    Returns:
        for each expectation, in order, the groups in which rows do not fit, with how many.

    Raises:
        UnknownColumnError: the data has no such column.
        UnsupportedError: an expectation is not one on rows, or not supported.
    """
    batch = Batch(frame, frame.collect_schema())
    require(column, batch.schema)
    findings = [_finding(batch, one) for one in wanted]
    judged = {number: one.unexpected() for number, one in enumerate(findings) if isinstance(one, RowByRow)}
    counted = _counted(batch, column, judged)
    return [
        counted[number] if number in counted else _counted_rows(batch, column, finding)
        for number, finding in enumerate(findings)
    ]


_ALL: Final = 2**32 - 1  # rows that a batch can have


def _finding(batch: Batch, wanted: Expectation) -> Finding:
    """Return what an expectation asks of rows."""
    question = QUESTIONS.get(getattr(wanted, "map_metric", None) or "")
    if question is None:
        raise UnsupportedError(f"{wanted.expectation_type} is none on rows; leave it out")
    arguments = wanted.configuration.kwargs
    return question(Request(batch, arguments, arguments, {}, _ALL))


def _counted(batch: Batch, column: str, judged: Mapping[int, pl.Expr]) -> dict[int, dict[Any, int]]:
    """Count those rows that can be judged one by one."""
    if not judged:
        return {}
    marked = batch.lazy([pl.col(column).alias(_GROUP), *(one.alias(str(number)) for number, one in judged.items())])
    counts = marked.group_by(_GROUP).agg(pl.exclude(_GROUP).sum()).sort(_GROUP).collect(engine="streaming")
    return {number: _positive(counts[_GROUP], counts[str(number)]) for number in judged}


def _counted_rows(batch: Batch, column: str, finding: Finding) -> dict[Any, int]:
    """Count the rows of a finding that names them by number."""
    plan = finding.numbers(_ALL)
    numbers = plan.finish(batch.select(plan.expressions).row(0) if plan.expressions else ())
    wanted = pl.Series(numbers, dtype=pl.UInt32)
    rows = batch.frame.lazy().select(pl.col(column).alias(_GROUP)).with_row_index(_ROW)
    found = rows.filter(pl.col(_ROW).cast(pl.UInt32).is_in(pl.lit(wanted).implode()))
    counts = found.group_by(_GROUP).len().sort(_GROUP).collect(engine="streaming")
    return _positive(counts[_GROUP], counts["len"])


_GROUP: Final = "__group"
_ROW: Final = "__row"


def _positive(groups: pl.Series, counts: pl.Series) -> dict[Any, int]:
    """Return the groups that have any."""
    return {group: count for group, count in zip(groups, counts, strict=True) if count}
