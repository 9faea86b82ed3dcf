"""The rows and columns that a metric looks at, as Great Expectations names them in a metric's domain."""

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
from great_expectations.expectations.row_conditions import Condition, deserialize_row_condition
from polars.datatypes import DataType

from expectations.polars_engine.conditions import mask
from expectations.polars_engine.errors import UnknownColumnError, UnsupportedError
from expectations.polars_engine.masks import Masks

OTHER_TABLE: Final = "expect_table_row_count_to_equal_other_table"


@dataclass(frozen=True)
class Domain:
    """Columns, and a mask of rows.

    Attributes:
        schema: of the whole frame.
        masks: where masks are shared with other metrics.
        columns: those that the metric looks at, in order; none for a metric of the whole table.
        rows: which rows the row condition leaves, without nulls; None for all.
        skip: which rows are left out for their missing values, by Great Expectations' name; empty for none.
    """

    schema: pl.Schema
    masks: Masks
    columns: tuple[str, ...]
    rows: pl.Expr | None
    skip: str = ""

    @property
    def column(self) -> str:
        """The column of a metric that looks at one."""
        return self.columns[0]

    @property
    def dtype(self) -> DataType:
        """The type of that column."""
        return self.schema[self.column]

    def values(self, column: str | None = None) -> pl.Expr:
        """Return a column, missing values as nulls."""
        name = column or self.column
        return pl.col(name).fill_nan(None) if self.schema[name].is_float() else pl.col(name)

    def present(self, column: str | None = None) -> pl.Expr:
        """Return which rows have a value in a column."""
        return self.masks.share(present(column or self.column, self.schema))

    def considered(self, every_row: bool = False) -> pl.Expr | None:
        """Return which rows count, without nulls; None for all.

        Args:
            every_row: count rows without a value too, where the metric looks at one column.
        """
        if len(self.columns) == 1 and not self.skip:
            return self.rows if every_row else all_of(self.rows, self.present())
        each = [self.present(column) for column in self.columns]
        if self.skip in ("both_values_are_missing", "all_values_are_missing"):
            return all_of(self.rows, functools.reduce(operator.or_, each))
        if self.skip in ("either_value_is_missing", "any_value_is_missing"):
            return all_of(self.rows, *each)
        return self.rows


def parse_domain(keywords: Mapping[str, Any], schema: pl.Schema, masks: Masks) -> Domain:
    """Return the domain that Great Expectations means.

    Args:
        keywords: a metric's domain as Great Expectations passes it.
        schema: of the data.
        masks: where masks are shared with other metrics.

    Raises:
        UnknownColumnError: the data lacks one of its columns.
        UnsupportedError: it is another table's, the row condition is text in another engine's language, or
            `ignore_row_if` is unknown.
    """
    if keywords.get("table"):
        raise UnsupportedError(f"{OTHER_TABLE} is not supported on Polars, where a batch is one frame; compare heights")
    columns = _columns(keywords)
    for column in columns:
        require(column, schema)
    skip = keywords.get("ignore_row_if") or ""
    if skip not in _SKIPS:
        known = ", ".join(sorted(_SKIPS - {""}))
        raise UnsupportedError(f"`ignore_row_if` is {skip!r}; give one of: {known}")
    rows = row_mask(keywords.get("row_condition"), schema)
    return Domain(schema, masks, columns, None if rows is None else masks.share(rows), skip)


def row_mask(condition: Any, schema: pl.Schema) -> pl.Expr | None:
    """Return which rows a row condition leaves; None for all.

    Raises:
        UnknownColumnError: the data lacks a column of the condition.
        UnsupportedError: it is text in another engine's language.
    """
    if not condition:
        return None
    parsed = deserialize_row_condition(condition)
    if not isinstance(parsed, Condition):
        raise UnsupportedError(
            f"row_condition {parsed!r} is text for another engine; build it from "
            "`great_expectations.expectations.row_conditions.Column`, such as `Column('metric') == 'power'`"
        )
    return mask(parsed, schema)


def require(column: str, schema: pl.Schema) -> None:
    """Refuse a column that the data lacks.

    Raises:
        UnknownColumnError: says which columns there are.
    """
    if column not in schema:
        raise UnknownColumnError(f'The column "{column}" does not exist in the data; there are: {", ".join(schema)}')


def present(column: str, schema: pl.Schema) -> pl.Expr:
    """Return which rows have a value in a column; NaN is none."""
    there = pl.col(column).is_not_null()
    return there & pl.col(column).is_not_nan().fill_null(False) if schema[column].is_float() else there


def all_of(*masks: pl.Expr | None) -> pl.Expr | None:
    """Return which rows are in every mask; None stands for all rows."""
    given = [one for one in masks if one is not None]
    return functools.reduce(operator.and_, given) if given else None


def count(rows: pl.Expr | None) -> pl.Expr:
    """Return how many rows a mask leaves."""
    return pl.len() if rows is None else rows.sum()


def within(values: pl.Expr, rows: pl.Expr | None) -> pl.Expr:
    """Return those values that a mask leaves."""
    return values if rows is None else values.filter(rows)


_SKIPS = frozenset(
    {
        "",
        "neither",
        "never",
        "both_values_are_missing",
        "either_value_is_missing",
        "all_values_are_missing",
        "any_value_is_missing",
    }
)


def _columns(keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of a domain, of whichever kind it is."""
    if keywords.get("column_list"):
        return tuple(keywords["column_list"])
    if keywords.get("column_A"):
        return (keywords["column_A"], keywords["column_B"])
    return (keywords["column"],) if keywords.get("column") else ()
