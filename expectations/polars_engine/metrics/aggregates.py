"""Metrics that make one value of a column."""

import math
from collections.abc import Callable
from typing import Any, Final

import polars as pl

from expectations.polars_engine.conditions import is_in
from expectations.polars_engine.domain import all_of, count, within
from expectations.polars_engine.errors import PolarsEngineError
from expectations.polars_engine.literals import held_as
from expectations.polars_engine.plans import Plan, Request, of_one


def minimum(request: Request) -> Plan:
    """Return the smallest value."""
    return of_one(_values(request).min())


def maximum(request: Request) -> Plan:
    """Return the largest value."""
    return of_one(_values(request).max())


def mean(request: Request) -> Plan:
    """Return the mean."""
    return of_one(_values(request, numbers=True).mean())


def median(request: Request) -> Plan:
    """Return the median."""
    return of_one(_values(request, numbers=True).median())


def standard_deviation(request: Request) -> Plan:
    """Return the sample's standard deviation; None for fewer than two values."""
    return of_one(_values(request, numbers=True).std(ddof=1))


def total(request: Request) -> Plan:
    """Return the sum; 0 where there is no value."""
    return of_one(_values(request, numbers=True).sum())


def quantiles(request: Request) -> Plan:
    """Return quantiles as `pandas.Series.quantile` does; `allow_relative_error` names the interpolation."""
    how = request.values.get("allow_relative_error") or "nearest"
    if how not in _INTERPOLATIONS:
        known = ", ".join(_INTERPOLATIONS)
        raise PolarsEngineError(f"allow_relative_error is {how!r}; give the name of an interpolation: {known}")
    ordered = _values(request, numbers=True).drop_nulls().sort()
    last = ordered.len().cast(pl.Int64) - 1
    found = [_INTERPOLATIONS[how](ordered, last * share) for share in request.values["quantiles"]]
    return Plan(tuple(found), lambda values: [math.nan if value is None else value for value in values])


def distinct_values(request: Request) -> Plan:
    """Return the distinct values as a set, None for missing ones."""
    domain = request.domain()
    every = within(domain.values(), domain.rows)
    return Plan((every.unique().implode(),), lambda values: set(values[0]))


def distinct_count(request: Request) -> Plan:
    """Return how many distinct values there are."""
    return of_one(_values(request).drop_nulls().n_unique())


def unique_share(request: Request) -> Plan:
    """Return how many of the values are distinct, as a share; 0 where there is no value."""
    present = _values(request).drop_nulls()
    return Plan((present.n_unique(), present.len()), lambda values: values[0] / values[1] if values[1] else 0)


def non_null_count(request: Request) -> Plan:
    """Return how many values there are."""
    domain = request.domain()
    return of_one(count(all_of(domain.rows, domain.present())))


def non_null_share(request: Request) -> Plan:
    """Return how many of the rows have a value, as a share; 0 where there is no row."""
    domain = request.domain()
    counts = (count(all_of(domain.rows, domain.present())), count(domain.rows))
    return Plan(counts, lambda values: values[0] / values[1] if values[1] else 0)


def most_common_values(request: Request) -> Plan:
    """Return the value that is there most often, or several, ascending."""
    return of_one(_values(request).drop_nulls().mode().sort().implode())


def not_in_set(request: Request) -> Plan:
    """Return the distinct values that are none of these, ascending, at most `limit`."""
    limit = request.values.get("limit") or MOST_DISTINCT
    return of_one(_others(request).sort().head(limit).implode())


def not_in_set_count(request: Request) -> Plan:
    """Return how many distinct values are none of these."""
    return of_one(_others(request).len())


def missing_from_column(request: Request) -> Plan:
    """Return which of these values no row has, at most `limit`."""
    limit = request.values.get("limit") or MOST_DISTINCT
    return _missing(request, lambda missing: missing[:limit])


def missing_from_column_count(request: Request) -> Plan:
    """Return how many of these values no row has."""
    return _missing(request, len)


MOST_DISTINCT: Final = 20  # distinct values that Great Expectations lists at most, on any engine


def _values(request: Request, numbers: bool = False) -> pl.Expr:
    """Return the column's values in the rows that count, missing ones as nulls."""
    domain = request.domain()
    if numbers and not (domain.dtype.is_numeric() or domain.dtype.is_temporal() or domain.dtype == pl.Boolean):
        raise PolarsEngineError(f'column "{domain.column}" is of type {domain.dtype}; this needs numbers')
    as_float = numbers and domain.dtype.is_decimal()
    return within(domain.values().cast(pl.Float64) if as_float else domain.values(), domain.rows)


def _others(request: Request) -> pl.Expr:
    """Return the distinct values that are none of the set's."""
    values = _values(request).drop_nulls()
    return values.filter(~is_in(values, request.values["value_set"], request.domain().dtype)).unique()


def _missing(request: Request, finish: Callable[[list[Any]], Any]) -> Plan:
    """Find which of the set's values no row has."""
    dtype, wanted = request.domain().dtype, request.values["value_set"]
    values = _values(request)
    found = values.filter(is_in(values, wanted, dtype)).unique().implode()
    held = {value: held_as(value, dtype) for value in wanted if value is not None}

    def missing(found: tuple[Any, ...]) -> Any:
        there = set(found[0])
        return finish([value if own is None else own for value, own in held.items() if own not in there])

    return Plan((found,), missing)


def _at(ordered: pl.Expr, position: pl.Expr) -> pl.Expr:
    """Return the value at a position; null where there is none."""
    return ordered.get(position.cast(pl.Int64).clip(0), null_on_oob=True)


def _linear(ordered: pl.Expr, position: pl.Expr) -> pl.Expr:
    """Interpolate between the neighbours."""
    low, high = _at(ordered, position.floor()), _at(ordered, position.ceil())
    return low + (high - low) * (position - position.floor())


_INTERPOLATIONS: Final[dict[str, Callable[[pl.Expr, pl.Expr], pl.Expr]]] = {
    "linear": _linear,
    "lower": lambda ordered, position: _at(ordered, position.floor()),
    "higher": lambda ordered, position: _at(ordered, position.ceil()),
    "midpoint": lambda ordered, position: (_at(ordered, position.floor()) + _at(ordered, position.ceil())) / 2,
    "nearest": lambda ordered, position: _at(ordered, position.round(mode="half_to_even")),
}
