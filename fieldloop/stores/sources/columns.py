"""Arrow columns to the raw entries that the domain decodes: numbers as arrays, texts that repeat once each."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fieldloop.domain.columns import Coded, Column, Stamps
from fieldloop.domain.errors import SourceError
from fieldloop.domain.payloads.records import Table, clock_fields
from fieldloop.domain.profile import Profile


def to_table(profile: Profile, rows: pa.Table, named_by: str = "") -> Table:
    """Return rows as records of a profile; a field without a column has no entries.

    Args:
        profile: the compiled profile.
        rows: columns by field path.
        named_by: the column by which the rows have their devices; another one that names devices is held against it.

    Raises:
        SourceError: a column is of a type that holds neither numbers, texts nor times.
    """
    there = set(rows.column_names)

    def column(name: str) -> Column:
        return entries(name, rows[name]) if name in there else Coded(np.full(rows.num_rows, -1), ())

    own = profile.device_field
    checked = own is not None and own != named_by and own in there
    return Table(
        rows=range(rows.num_rows),
        clock=tuple(column(name) for name in clock_fields(profile)),
        device=texts(str(own), rows[own]) if checked else None,
        channels=(column(channel.field) for channel in profile.channels),
        rejects=[],
    )


def entries(name: str, column: pa.ChunkedArray) -> Column:
    """Return a column's raw entries.

    Raises:
        SourceError: it is of a type that holds neither numbers, texts nor times.
    """
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        local = getattr(kind, "tz", None) is None
        stamps = pc.cast(column, pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        nothing = np.iinfo(np.int64).min
        return Stamps(pc.fill_null(pc.cast(stamps, pa.int64()), nothing).to_numpy(), local)
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        return _coded(column)
    if pa.types.is_null(kind):
        return Coded(np.full(len(column), -1), ())
    raise SourceError(f"column `{name}`: expected numbers, texts or times, got {kind}")


def texts(name: str, column: pa.ChunkedArray) -> Coded:
    """Return a column of names, such as the devices', as text; whole numbers too."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    try:
        return _coded(pc.cast(column, pa.string()))
    except pa.ArrowException as exc:
        raise SourceError(f"column `{name}`: expected names, got {column.type}") from exc


def _coded(column: pa.ChunkedArray) -> Coded:
    encoded = pc.dictionary_encode(column.combine_chunks())
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Coded(codes, encoded.dictionary.to_pylist())
