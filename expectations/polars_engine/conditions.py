"""Row conditions as masks: expressions without nulls, so that any number of them share one pass over the data."""

import functools
import operator
from collections.abc import Callable
from typing import Any, Final

import polars as pl
from great_expectations.expectations.row_conditions import (
    AndCondition,
    ComparisonCondition,
    Condition,
    NullityCondition,
    Operator,
    OrCondition,
)
from polars.datatypes import DataType

from expectations.polars_engine.errors import UnknownColumnError, UnsupportedError
from expectations.polars_engine.literals import held_as, literal, members


def mask(condition: Condition, schema: pl.Schema) -> pl.Expr:
    """Return which rows a condition leaves, without nulls: as in pandas, a missing value equals nothing.

    Args:
        condition: as `great_expectations.expectations.row_conditions` builds it.
        schema: of the data.

    Raises:
        UnknownColumnError: the data lacks a column of the condition.
        UnsupportedError: the condition is of another kind, such as text for pandas.
    """
    if isinstance(condition, AndCondition):
        return functools.reduce(operator.and_, (mask(one, schema) for one in condition.conditions))
    if isinstance(condition, OrCondition):
        return functools.reduce(operator.or_, (mask(one, schema) for one in condition.conditions))
    if not isinstance(condition, NullityCondition | ComparisonCondition):
        raise UnsupportedError(
            f"row_condition {condition!r} is text for another engine; build it from "
            "`great_expectations.expectations.row_conditions.Column`, such as `Column('metric') == 'power'`"
        )
    name = condition.column.name
    if name not in schema:
        raise UnknownColumnError(
            f'The column "{name}" of row_condition `{condition}` does not exist in the data; '
            f"there are: {', '.join(schema)}"
        )
    if isinstance(condition, NullityCondition):
        missing = pl.col(name).fill_nan(None).is_null() if schema[name].is_float() else pl.col(name).is_null()
        return missing if condition.is_null else ~missing
    return _comparison(name, Operator(condition.operator), condition.parameter, schema[name])


def equals(column: pl.Expr, value: Any, dtype: DataType) -> pl.Expr:
    """Return which rows of a column have a value; a value that the column cannot hold, none has."""
    held = held_as(value, dtype)
    if held is None:
        return pl.repeat(False, pl.len())
    return column.eq_missing(pl.lit(held) if isinstance(dtype, pl.Enum) else literal(held, dtype))


def is_in(column: pl.Expr, values: list[Any], dtype: DataType) -> pl.Expr:
    """Return which rows of a column have one of the values."""
    return column.is_in(pl.lit(members(values, dtype)).implode()).fill_null(False)


_ORDER: Final[dict[Operator, Callable[[pl.Expr, pl.Expr], pl.Expr]]] = {
    Operator.LESS_THAN: operator.lt,
    Operator.LESS_THAN_OR_EQUAL: operator.le,
    Operator.GREATER_THAN: operator.gt,
    Operator.GREATER_THAN_OR_EQUAL: operator.ge,
}


def _comparison(name: str, how: Operator, value: Any, dtype: DataType) -> pl.Expr:
    """Return which rows compare so with the value."""
    column = pl.col(name)
    if how in (Operator.EQUAL, Operator.NOT_EQUAL):
        equal = equals(column, value, dtype)
        return equal if how is Operator.EQUAL else ~equal
    if how in (Operator.IN, Operator.NOT_IN):
        among = is_in(column, value, dtype)
        return among if how is Operator.IN else ~among
    ordered = column.fill_nan(None) if dtype.is_float() else column
    if isinstance(dtype, pl.Categorical | pl.Enum):
        ordered = column.cast(pl.String)
    return _ORDER[how](ordered, literal(value, dtype)).fill_null(False)
