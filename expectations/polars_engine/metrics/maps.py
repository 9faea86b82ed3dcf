"""Metrics that ask a yes/no question of every row.

A question (`Question`) is answered by a `Finding`: which rows count, and which of them do not fit. From it come the
metrics that Great Expectations asks for: how many do not fit, and which.
"""

import functools
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from expectations.polars_engine.conditions import equals, is_in
from expectations.polars_engine.domain import Domain, all_of, count, within
from expectations.polars_engine.errors import PolarsEngineError, UnsupportedError
from expectations.polars_engine.literals import literal, members
from expectations.polars_engine.masks import fingerprint
from expectations.polars_engine.metrics.duplicates import duplicate_rows
from expectations.polars_engine.plans import Batch, Plan, Request, known, of_one


class Finding(Protocol):
    """Which rows count, and which of them do not fit."""

    @property
    def considered(self) -> pl.Expr | None:
        """Which rows count, without nulls; None for all."""

    def count(self) -> Plan:
        """Return how many do not fit."""

    def numbers(self, most: int) -> Plan:
        """Return the row numbers of those that do not fit, ascending, at most so many."""


Question = Callable[[Request], Finding]


@dataclass(frozen=True)
class RowByRow:
    """Rows that can be judged one by one.

    Attributes:
        considered: which rows count; None for all.
        fits: which rows fit; a null fits no more than a false.
    """

    considered: pl.Expr | None
    fits: pl.Expr

    def count(self) -> Plan:
        """Return how many do not fit."""
        return of_one(self.unexpected().sum())

    def numbers(self, most: int) -> Plan:
        """Return the row numbers of those that do not fit."""
        return _numbers(self.unexpected().arg_true().head(most))

    def unexpected(self) -> pl.Expr:
        """Return which rows do not fit, without nulls."""
        misfits = ~self.fits
        return (misfits if self.considered is None else self.considered & misfits).fill_null(True)


@dataclass(frozen=True)
class InOrder:
    """Rows that are judged by the row before them.

    Attributes:
        considered: which rows count; None for all.
        unexpected: which of those that count do not fit: shorter than the data.
    """

    considered: pl.Expr | None
    unexpected: pl.Expr

    def count(self) -> Plan:
        """Return how many do not fit."""
        return of_one(self.unexpected.sum())

    def numbers(self, most: int) -> Plan:
        """Return the row numbers of those that do not fit."""
        numbers = within(pl.int_range(pl.len()), self.considered)
        return _numbers(numbers.filter(self.unexpected).head(most))


@dataclass(frozen=True)
class Duplicates:
    """Rows of which there is another with the same values.

    Attributes:
        batch: the data.
        columns: whose values are compared.
        considered: which rows count; None for all.
    """

    batch: Batch
    columns: tuple[pl.Expr, ...]
    considered: pl.Expr | None

    def count(self) -> Plan:
        """Return how many there are."""
        return Plan((), lambda _: self._rows().len(), beside=self._rows)

    def numbers(self, most: int) -> Plan:
        """Return their row numbers."""
        return Plan((), lambda _: self._rows().head(most).to_list())

    def _rows(self) -> pl.Series:
        return duplicate_rows(self.batch, self.columns, self.considered)


def unexpected_count(question: Question, request: Request) -> Plan:
    """Return how many rows do not fit; of data in memory, note the first of them beside it, for samples."""
    finding, batch = question(request), request.batch
    if not isinstance(finding, RowByRow) or isinstance(batch.frame, pl.LazyFrame):
        return finding.count()
    unexpected = finding.unexpected()
    key = fingerprint(unexpected)

    def finish(values: tuple[Any, ...]) -> Any:
        count, batch.first_rows[key] = values
        return count

    return Plan((unexpected.sum(), unexpected.arg_true().head(MOST_VALUES).implode()), finish)


def filtered_row_count(question: Question, request: Request) -> Plan:
    """Return how many rows count."""
    return of_one(count(question(request).considered))


def unexpected_values(question: Question, request: Request) -> Plan:
    """Return the values that do not fit: of one column plain, of a pair as tuples, of several as dictionaries."""
    columns = list(request.domain().columns)
    paired = "column_A" in request.keywords

    def values(rows: pl.DataFrame, _numbers: list[int]) -> list[Any]:
        if len(columns) == 1:
            return rows[columns[0]].to_list()
        return rows.select(columns).rows() if paired else rows.select(columns).to_dicts()

    return _sample(question, request, values, most=MOST_VALUES)


def unexpected_index_list(question: Question, request: Request) -> Plan:
    """Return which rows do not fit: their numbers, or the values of the columns that name rows."""
    names = request.values["result_format"].get("unexpected_index_column_names") or []
    hidden = request.values["result_format"].get("exclude_unexpected_values", False)
    columns = list(dict.fromkeys([*([] if hidden else request.domain().columns), *names]))

    def index(rows: pl.DataFrame, numbers: list[int]) -> list[Any]:
        if not names:
            return numbers
        named = rows.select(columns)
        return [named.to_dict(as_series=False)] if hidden and rows.height else named.to_dicts()

    return _sample(question, request, index)


def unexpected_index_query(question: Question, request: Request) -> Plan:
    """Return Python that gives the rows that do not fit, from the frame `df`."""
    if request.values["result_format"].get("return_unexpected_index_query") is False:
        return Plan((), lambda _: None)
    return _sample(question, request, lambda _, numbers: f"df[{numbers}]")


def unexpected_rows(question: Question, request: Request) -> Plan:
    """Return the whole rows that do not fit, each as a dictionary, which Great Expectations can write as JSON."""
    return _sample(question, request, lambda rows, _: rows.to_dicts(), most=MOST_VALUES)


def null(request: Request) -> Finding:
    """Is there no value?"""
    domain = request.domain()
    return RowByRow(domain.considered(every_row=True), ~domain.present())


def nonnull(request: Request) -> Finding:
    """Is there a value?"""
    domain = request.domain()
    return RowByRow(domain.considered(every_row=True), domain.present())


def between(request: Request) -> Finding:
    """Is the value within bounds?"""
    low, high = request.values.get("min_value"), request.values.get("max_value")
    if low is None and high is None:
        raise PolarsEngineError("min_value and max_value cannot both be None")
    if low is not None and high is not None and low > high:
        raise PolarsEngineError("min_value cannot be greater than max_value")
    domain = request.domain()
    return RowByRow(domain.considered(), _bounded(pl.col(domain.column), request, domain.dtype))


def in_set(request: Request) -> Finding:
    """Is the value one of these?"""
    domain, values = request.domain(), request.values.get("value_set")
    if values is None:
        return RowByRow(domain.considered(), _always(domain))
    return RowByRow(domain.considered(), _among(domain, values))


def not_in_set(request: Request) -> Finding:
    """Is the value none of these?"""
    domain, values = request.domain(), request.values.get("value_set")
    if values is None:
        return RowByRow(domain.considered(), _always(domain))
    return RowByRow(domain.considered(), ~_among(domain, values))


def unique(request: Request) -> Finding:
    """Has no other row this value?"""
    domain = request.domain()
    return Duplicates(request.batch, (domain.values(),), domain.considered())


def compound_unique(request: Request) -> Finding:
    """Has no other row these values together?"""
    domain = request.domain()
    columns = tuple(domain.values(column) for column in domain.columns)
    return Duplicates(request.batch, columns, domain.considered())


def increasing(request: Request) -> Finding:
    """Is the value as large as the one before, or larger where `strictly` is asked?"""
    return _ordered(request, operator.le if request.values.get("strictly") else operator.lt)


def decreasing(request: Request) -> Finding:
    """Is the value as small as the one before, or smaller where `strictly` is asked?"""
    return _ordered(request, operator.ge if request.values.get("strictly") else operator.gt)


def match_regex(request: Request) -> Finding:
    """Does the pattern occur in the text?"""
    domain = request.domain()
    return RowByRow(domain.considered(), _matches(domain, request.values["regex"]))


def not_match_regex(request: Request) -> Finding:
    """Does the pattern not occur in the text?"""
    domain = request.domain()
    return RowByRow(domain.considered(), ~_matches(domain, request.values["regex"]))


def match_regex_list(request: Request) -> Finding:
    """Does any of the patterns, or each where `match_on` is `all`, occur in the text?"""
    domain = request.domain()
    how = operator.and_ if request.values.get("match_on") == "all" else operator.or_
    found = functools.reduce(how, (_matches(domain, regex) for regex in request.values["regex_list"]))
    return RowByRow(domain.considered(), found)


def not_match_regex_list(request: Request) -> Finding:
    """Does none of the patterns occur in the text?"""
    domain = request.domain()
    found = functools.reduce(operator.or_, (_matches(domain, regex) for regex in request.values["regex_list"]))
    return RowByRow(domain.considered(), ~found)


def value_length_between(request: Request) -> Finding:
    """Is the text's length, in characters, within bounds?"""
    domain = request.domain()
    return RowByRow(domain.considered(), _bounded(_text(domain).str.len_chars(), request, pl.UInt32()))


def value_length_equals(request: Request) -> Finding:
    """Is the text so many characters long?"""
    domain = request.domain()
    return RowByRow(domain.considered(), _text(domain).str.len_chars() == request.values["value"])


def pair_equal(request: Request) -> Finding:
    """Are the two values equal?"""
    domain = request.domain()
    first, second = (domain.values(column) for column in domain.columns)
    return RowByRow(domain.considered(), first == second)


def pair_greater(request: Request) -> Finding:
    """Is the first value larger than the second, or as large where `or_equal` is given?"""
    domain = request.domain()
    first, second = (domain.values(column) for column in domain.columns)
    return RowByRow(domain.considered(), first >= second if request.values.get("or_equal") else first > second)


def pair_in_set(request: Request) -> Finding:
    """Are the two values one of these pairs?"""
    domain, pairs = request.domain(), request.values.get("value_pairs_set")
    if pairs is None:
        return RowByRow(domain.considered(), _always(domain))
    fits = (
        _equals_or_missing(domain, domain.columns[0], first) & _equals_or_missing(domain, domain.columns[1], second)
        for first, second in pairs
    )
    return RowByRow(domain.considered(), functools.reduce(operator.or_, fits, ~_always(domain)))


def sum_equal(request: Request) -> Finding:
    """Do the row's values add up to the total?"""
    domain = request.domain()
    total = functools.reduce(operator.add, (domain.values(column) for column in domain.columns))
    return RowByRow(domain.considered(), total == request.values["sum_total"])


def all_equal(request: Request) -> Finding:
    """Are all values of the row equal? Missing ones equal each other."""
    domain = request.domain()
    first, *others = (domain.values(column) for column in domain.columns)
    return RowByRow(domain.considered(), functools.reduce(operator.and_, (first.eq_missing(one) for one in others)))


def unique_within_row(request: Request) -> Finding:
    """Does each of the row's values differ from the others? Missing ones equal each other."""
    domain = request.domain()
    pairs = itertools.combinations([domain.values(column) for column in domain.columns], 2)
    return RowByRow(domain.considered(), functools.reduce(operator.and_, (one.ne_missing(two) for one, two in pairs)))


MOST_VALUES = 200  # values and whole rows that Great Expectations lists at most, on any engine


def _sample(
    question: Question,
    request: Request,
    shown: Callable[[pl.DataFrame, list[int]], Any],
    most: int | None = None,
) -> Plan:
    """Return what is shown of the rows that do not fit; costs nothing where there are none."""
    if not request.known["unexpected_count"]:
        return Plan((), lambda _: shown(request.batch.schema.to_frame(), []))
    limit = _limit(request, most)
    wanted = min(limit, request.known["unexpected_count"])
    plan = _first_rows(question(request), request.batch, wanted)

    def finish(values: tuple[Any, ...]) -> Any:
        numbers = plan.finish(values)
        return shown(request.batch.take(numbers), numbers)

    return Plan(plan.expressions, finish, lambda values: len(plan.finish(values)) >= wanted)


def _first_rows(finding: Finding, batch: Batch, wanted: int) -> Plan:
    """Return the numbers of so many first rows that do not fit, from those noted where they are enough."""
    noted = batch.first_rows.get(fingerprint(finding.unexpected())) if isinstance(finding, RowByRow) else None
    return finding.numbers(wanted) if noted is None or len(noted) < wanted else known(noted[:wanted])


def _limit(request: Request, most: int | None) -> int:
    """Return how many rows the result format has room for."""
    wanted = request.values["result_format"]
    limit = request.most_rows if most is None else min(most, request.most_rows)
    return limit if wanted["result_format"] == "COMPLETE" else min(limit, wanted["partial_unexpected_count"])


def _numbers(ascending: pl.Expr) -> Plan:
    """Return row numbers as one value."""
    return of_one(ascending.implode())


def _among(domain: Domain, values: list[Any]) -> pl.Expr:
    """Return which rows have one of the values.

    A few texts are compared one by one: hashing a text costs as much as comparing it ten times, and the outcomes are
    the masks of row conditions on those values.
    """
    column, dtype = pl.col(domain.column), domain.dtype
    held = members(values, dtype)
    if dtype != pl.String or not 0 < len(held) <= _FEW_TEXTS:
        return is_in(column, values, dtype)
    return functools.reduce(operator.or_, (domain.masks.share(equals(column, one, dtype)) for one in held))


_FEW_TEXTS = 10


def _always(domain: Domain) -> pl.Expr:
    """Every row fits."""
    return pl.col(domain.columns[0]).is_null().or_(True)


def _bounded(values: pl.Expr, request: Request, dtype: pl.DataType) -> pl.Expr:
    """Return which values lie within the bounds of the request."""
    bounds = request.values
    low, high = bounds.get("min_value"), bounds.get("max_value")
    above: pl.Expr | None = None
    below: pl.Expr | None = None
    if low is not None:
        above = values > literal(low, dtype) if bounds.get("strict_min") else values >= literal(low, dtype)
    if high is not None:
        below = values < literal(high, dtype) if bounds.get("strict_max") else values <= literal(high, dtype)
    fits = all_of(above, below)
    if fits is None:
        raise PolarsEngineError("min_value and max_value cannot both be None")
    return fits


def _ordered(request: Request, wrong: Callable[[pl.Expr, Any], pl.Expr]) -> Finding:
    """Judge each value by the one before it, of those that count."""
    domain = request.domain()
    values = within(domain.values(), domain.considered())
    between_rows = (values.diff().fill_nan(None), 0)  # of two infinities neither is first: their difference is NaN
    unexpected = wrong(*between_rows) if domain.dtype.is_float() else wrong(values, values.shift(1))
    return InOrder(domain.considered(), unexpected.fill_null(False))


def _text(domain: Domain) -> pl.Expr:
    """Return the column as text.

    Raises:
        UnsupportedError: it holds none; how a number is written differs between engines.
    """
    if isinstance(domain.dtype, pl.String):
        return pl.col(domain.column)
    if isinstance(domain.dtype, pl.Categorical | pl.Enum):
        return pl.col(domain.column).cast(pl.String)
    raise UnsupportedError(f'column "{domain.column}" is of type {domain.dtype}; patterns and lengths need text')


def _matches(domain: Domain, regex: str) -> pl.Expr:
    """Return in which texts a pattern occurs.

    Raises:
        UnsupportedError: Polars knows no such pattern: it has neither look-around nor back-references.
    """
    try:
        pl.Series([""]).str.contains(regex)
    except pl.exceptions.ComputeError as exc:
        raise UnsupportedError(f"Polars cannot search for {regex!r} ({exc}); write it without look-around") from exc
    return _text(domain).str.contains(regex)


def _equals_or_missing(domain: Domain, column: str, value: Any) -> pl.Expr:
    """Return which rows of a column have a value, or have none where that is None."""
    return ~domain.present(column) if value is None else equals(pl.col(column), value, domain.schema[column])
