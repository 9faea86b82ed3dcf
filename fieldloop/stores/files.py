"""Files of appended rows: encoded in one pass, and committed to a Delta table with their statistics.

delta-rs splits rows into partitions, turns texts to strings and hashes them anew. Rows that are sorted by names already
and mostly of one partition take half the time as dictionaries straight into Parquet.
"""

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.transaction import AddAction, RemoveAction

DELTA_ENCODED: Final = ("event_time", "arrival_time", "sequence", "step_time", "end_time")

_ZSTD_LEVEL: Final = 1  # commits are to be quick; compaction takes its time


def append(
    handle: DeltaTable,
    frame: pl.DataFrame,
    partition_by: Sequence[str],
    put: Callable[[str, bytes], None],
    properties: CommitProperties,
) -> None:
    """Write rows as a file a partition, and commit them together.

    Killed anywhere, it leaves a whole table, and at most files that no version knows, which `vacuum` removes.

    Args:
        handle: the table; the version that it is at decides what counts as another writer in between.
        frame: at least one row, with the table's columns.
        partition_by: the table's partition columns.
        put: writes a file at a path in the table.
        properties: of the commit.

    Raises:
        DeltaError: another writer was quicker, or the store refuses.
    """
    parts = _parts(frame, partition_by)
    adds: list[AddAction | RemoveAction] = []
    for key, part in parts.items():
        values: dict[str, str | None] = {name: str(value) for name, value in zip(partition_by, key, strict=True)}
        path = "".join(f"{name}={value}/" for name, value in values.items()) + f"part-{uuid.uuid4()}.parquet"
        rows = part.drop(partition_by)
        written = parquet(rows)
        put(path, written)
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        adds.append(AddAction(path, len(written), values, now_ms, True, statistics(rows)))
    handle.create_write_transaction(
        adds, "append", handle.schema(), list(partition_by) or None, commit_properties=properties
    )
    handle.update_incremental()  # the commit leaves it where it was


def _parts(frame: pl.DataFrame, partition_by: Sequence[str]) -> dict[tuple[Any, ...], pl.DataFrame]:
    """Return the rows of each partition by its values; where all rows are of one, as nearly always, they stay."""
    if not partition_by:
        return {(): frame}
    values = frame.select(partition_by).row(0, named=True)
    if frame.select(pl.all_horizontal(pl.col(name).eq_missing(value) for name, value in values.items()).all()).item():
        return {tuple(values.values()): frame}
    return frame.partition_by(partition_by, as_dict=True)


def parquet(frame: pl.DataFrame) -> bytes:
    """Return a file as commits write it: times and positions as differences, the rest by dictionary, all under zstd."""
    differences = [name for name in DELTA_ENCODED if name in frame.columns]
    buffer = pa.BufferOutputStream()
    pq.write_table(
        frame.to_arrow(compat_level=pl.CompatLevel.oldest()),
        buffer,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=[name for name in frame.columns if name not in differences],
        column_encoding=dict.fromkeys(differences, "DELTA_BINARY_PACKED"),
        store_schema=False,  # else readers would take an `Enum` for what the table has as text
    )
    return bytes(buffer.getvalue())


def statistics(frame: pl.DataFrame) -> str:
    """Return a file's statistics as Delta keeps them: JSON, times as ISO 8601."""
    names = frame.select(cs.enum()).columns
    plain = [
        name
        for name, kind in frame.schema.items()
        if name not in names and not isinstance(kind, pl.Binary | pl.List | pl.Boolean)
    ]
    texts = {name: frame[name].unique().cast(pl.String) for name in names}
    least, most = (
        frame.select(getattr(pl.col(plain), which)()).row(0, named=True)
        | {name: getattr(column, which)() for name, column in texts.items()}
        for which in ("min", "max")
    )
    return json.dumps(
        {
            "numRecords": len(frame),
            "minValues": _stated(least),
            "maxValues": _stated(most),
            "nullCount": frame.null_count().row(0, named=True),
        }
    )


def _stated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON can hold of a row of least or greatest values."""
    known = {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
    return {
        name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in known.items()
    }
