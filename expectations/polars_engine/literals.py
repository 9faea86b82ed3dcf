"""Values of an expectation, brought to the type of the column that they are compared with.

Suites are kept as JSON, so a time arrives as text; an Enum refuses text that it lacks; a zone of the value need not be
the column's.
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

import polars as pl
from dateutil.parser import parse
from polars.datatypes import DataType

from expectations.polars_engine.errors import PolarsEngineError

NANOSECOND_YEARS: Final = range(1678, 2262)  # what 64 bits of nanoseconds since 1970 can hold


def literal(value: Any, dtype: DataType) -> pl.Expr:
    """Return a value as an expression that compares with a column of that type.

    Raises:
        PolarsEngineError: the two cannot be compared.
    """
    moment = _moment(value, dtype)
    if isinstance(dtype, pl.Datetime) and isinstance(moment, datetime):
        return _datetime(moment, dtype)
    number = isinstance(moment, int | float | Decimal)
    if isinstance(moment, str) != _is_text(dtype) or (dtype.is_numeric() and not number):
        raise PolarsEngineError(f"a column of type {dtype} cannot be compared with {value!r}; give a value of its type")
    return pl.lit(moment)


def members(values: Iterable[Any], dtype: DataType) -> pl.Series:
    """Return those of the values that a column of that type can hold, once each, as its type."""
    held = [one for one in (held_as(value, dtype) for value in values) if one is not None]
    return pl.Series(held, dtype=dtype, strict=False).unique(maintain_order=True)


def held_as(value: Any, dtype: DataType) -> Any:
    """Return a value as a column of that type would hold it; None where it cannot."""
    if dtype.is_temporal():
        return _held_moment(value, dtype)
    if _is_text(dtype):
        return value if isinstance(value, str) and _in_categories(value, dtype) else None
    if not isinstance(value, bool | int | float | Decimal):
        return None
    if dtype.is_integer():
        return _held_integer(value, dtype)
    if dtype == pl.Boolean:
        return bool(value) if value in (0, 1) else None
    return value if dtype.is_numeric() else None


def _held_integer(value: float | Decimal, dtype: DataType) -> int | None:
    """Return a number as an integer of that type."""
    whole = int(value) if value == value // 1 else None
    held: int | None = pl.Series([whole], dtype=pl.Int128).cast(dtype, strict=False).item()
    return held


def _held_moment(value: Any, dtype: DataType) -> Any:
    """Return a time as a column of that type would hold it."""
    moment = _moment(value, dtype)
    if isinstance(dtype, pl.Datetime):
        if not isinstance(moment, datetime) or (moment.tzinfo is None) != (dtype.time_zone is None):
            return None
        return moment.astimezone(ZoneInfo(dtype.time_zone)) if dtype.time_zone else moment
    if dtype == pl.Date:
        return moment if isinstance(moment, date) and not isinstance(moment, datetime) else None
    return moment if isinstance(moment, timedelta) == (dtype == pl.Duration) else None


def _moment(value: Any, dtype: DataType) -> Any:
    """Read text and dates as a time where the column holds times."""
    if isinstance(value, str) and isinstance(dtype, pl.Datetime | pl.Date):
        parsed = parse(value)
        return parsed.date() if dtype == pl.Date else parsed
    if isinstance(dtype, pl.Datetime) and isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)
    return value


def _datetime(moment: datetime, dtype: pl.Datetime) -> pl.Expr:
    """Return a time in the column's zone, and in its unit where that holds it."""
    if (moment.tzinfo is None) != (dtype.time_zone is None):
        zones = f"{dtype.time_zone or 'no zone'} and {moment.tzinfo or 'no zone'}"
        raise PolarsEngineError(f"a time with a zone cannot be compared with one without ({zones}): {moment}")
    if moment.tzinfo is None:
        exact = pl.lit(moment)
    else:
        utc = pl.lit(moment.astimezone(UTC).replace(tzinfo=None)).dt.replace_time_zone("UTC")
        exact = utc.dt.convert_time_zone(str(dtype.time_zone))
    fits = dtype.time_unit == "ns" and moment.year in NANOSECOND_YEARS
    return exact.dt.cast_time_unit("ns") if fits else exact


def _is_text(dtype: DataType) -> bool:
    """Return whether the column holds text, plain or by dictionary."""
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def _in_categories(value: str, dtype: DataType) -> bool:
    """Return whether text is one of an Enum's; every other type of text holds any."""
    return not isinstance(dtype, pl.Enum) or value in dtype.categories
