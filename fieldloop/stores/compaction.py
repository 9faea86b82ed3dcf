"""Compaction: many small files of a table become few, sorted and encoded as is smallest for what is in them.

Commits append small files all day. A compaction replaces groups of them, a group a commit, and changes no row; what is
appended meanwhile stays. Files are plain Parquet: any Delta reader reads them.
"""

import io
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from fieldloop.domain.errors import StoreError
from fieldloop.stores import objects
from fieldloop.stores.codes import with_ordered_codes
from fieldloop.stores.files import DELTA_ENCODED, statistics
from fieldloop.stores.lake import PARQUET, Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import PARTITIONS

APPLICATION: Final = "maintain"  # of the application transactions, which keep two compactions apart
FILE_ROWS: Final = 4_000_000  # rows of a compacted file, about: they are sorted in memory, some 200 bytes each
ROW_GROUP_ROWS: Final = 1 << 20
MARK: Final = "compact-"  # how the names of compacted files begin

_ZSTD_LEVEL: Final = 9
_ZSTD_LEVEL_CODES: Final = 19  # of values, nearly all that a file holds


@dataclass(frozen=True)
class Layout:
    """One way to lay rows out in a file.

    Attributes:
        order: what rows are sorted by.
        group: the column of which every value gets row groups, and so dictionaries, of its own.
        codes: the column of doubles that gets dictionaries and codes of our own.
    """

    order: tuple[str, ...]
    group: str | None = None
    codes: str | None = None


# What is smallest depends on the data (docs/adr/0006). Messages that came one by one, each with its own arrival time,
# are smallest in their own order; values of one metric together where arrival tells little, as in imported archives.
LAYOUTS: Final[Mapping[str, tuple[Layout, ...]]] = {
    "readings": (
        Layout(("device", "event_time", "metric"), codes="value"),
        Layout(("metric", "device", "event_time"), group="metric", codes="value"),
    ),
    "quarantine": (Layout(("sequence", "replay")),),
    "carried": (Layout(("device", "sequence")),),
    "replays": (Layout(("replay", "began_at")),),
    "predictions": (Layout(("target", "device", "end_time")),),
    "sources": (Layout(("source", "entered_at")),),
    "examples": (Layout(("made_at", "device")),),
    "validations": (Layout(("validated_at", "device")),),
    "checks": (Layout(("judged_at", "suite", "column", "expectation", "device")),),
}


@dataclass(frozen=True)
class Size:
    """How large a table is: its newest version, without files that only older ones need."""

    files: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Compacted:
    """What a compaction did: files replaced, files written instead."""

    replaced: int
    written: int


@dataclass(frozen=True)
class _File:
    path: str
    bytes: int
    rows: int
    partition: Mapping[str, Any]
    least: Mapping[str, Any]  # column to its least value


def size(lake: Lake, table: str) -> Size:
    """Return how large a table is; one that is not there yet has nothing."""
    handle = lake.open(table)
    files = [] if handle is None else _files(handle)
    return Size(len(files), sum(file.rows for file in files), sum(file.bytes for file in files))


def compact(settings: Settings, table: str, file_rows: int = FILE_ROWS) -> Compacted:
    """Replace a table's small files, a group at a time; a table that is not there yet is left alone.

    Killed anywhere, it leaves a whole table and at most one file that no version knows, which `vacuum` removes.

    Args:
        settings: where the lake is.
        table: a table that is only ever appended to, one of `LAYOUTS`.
        file_rows: rows of a compacted file, about.

    Raises:
        StoreError: the store does not answer, or another compaction committed at the same time.
    """
    lake = Lake(settings)
    handle = lake.open(table)
    done = Compacted(0, 0)
    for group in () if handle is None else tuple(_groups(table, _files(handle), file_rows)):
        _replace(settings, lake, table, group)
        done = Compacted(done.replaced + len(group), done.written + 1)
    return done


def vacuum(lake: Lake, table: str, keep: timedelta, pinned: Collection[int] = ()) -> int:
    """Delete files that no version younger than `keep` needs, checkpoint the log, and return how many files went.

    Args:
        lake: whose table.
        table: its name.
        keep: how long a version stays readable.
        pinned: versions that stay readable however old they are.

    Raises:
        StoreError: the store refuses or does not answer.
    """
    handle = lake.open(table)
    if handle is None:
        return 0
    try:
        handle.create_checkpoint()
        hours = int(keep.total_seconds() // 3600)
        kept = sorted(pinned) or None
        gone = handle.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True, keep_versions=kept)
        return len(gone)
    except (DeltaError, OSError) as exc:
        raise StoreError(f"table {table!r} could not be vacuumed: {exc}") from exc


def encode(frame: pl.DataFrame, layouts: Sequence[Layout]) -> bytes:
    """Return rows as the smallest Parquet file that one of the layouts makes."""
    return min((_encoded(frame, layout) for layout in layouts), key=len)


def _encoded(frame: pl.DataFrame, layout: Layout) -> bytes:
    """Times and positions as differences, everything else by dictionary, all under zstd."""
    ordered = frame.sort(layout.order)
    parts = ordered.partition_by(layout.group, maintain_order=True) if layout.group else [ordered]
    groups = [slice_ for part in parts for slice_ in part.iter_slices(ROW_GROUP_ROWS)] or [ordered]
    differences = [name for name in DELTA_ENCODED if name in frame.columns]
    buffer = io.BytesIO()
    writer = pq.ParquetWriter(
        buffer,
        _arrow(ordered[:0]).schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=[name for name in frame.columns if name not in differences],
        column_encoding=dict.fromkeys(differences, "DELTA_BINARY_PACKED"),
        max_rows_per_page=ROW_GROUP_ROWS,  # of names zstd leaves less than a page's header takes
    )
    with writer:
        for group in groups:
            writer.write_table(_arrow(group), row_group_size=ROW_GROUP_ROWS)
    if layout.codes is None or frame[layout.codes].has_nulls() or frame.is_empty():
        return buffer.getvalue()
    values = [group[layout.codes].to_numpy() for group in groups]
    return with_ordered_codes(buffer.getvalue(), layout.codes, values, _ZSTD_LEVEL_CODES)


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _files(handle: DeltaTable) -> list[_File]:
    rows = pl.DataFrame(handle.get_add_actions(flatten=False)).to_dicts()
    return [
        _File(row["path"], row["size_bytes"], row["num_records"], row.get("partition") or {}, row["min"] or {})
        for row in rows
    ]


def _groups(table: str, files: Sequence[_File], file_rows: int) -> Iterator[list[_File]]:
    """Yield files to be made one: of one partition, neighbours in time, until they have the rows of a file."""
    by_partition: dict[tuple[Any, ...], list[_File]] = {}
    for file in files:
        if file.rows < file_rows / 2:
            by_partition.setdefault(tuple(file.partition.values()), []).append(file)
    clock = "event_time" if table == "readings" else LAYOUTS[table][0].order[0]
    for small in by_partition.values():
        group: list[_File] = []
        for file in sorted(small, key=lambda each: (str(each.least.get(clock)), each.path)):
            if group and sum(each.rows for each in group) + file.rows > file_rows:
                yield from _worth(group)
                group = []
            group.append(file)
        yield from _worth(group)


def _worth(group: list[_File]) -> Iterator[list[_File]]:
    """Yield a group unless it is a single file that a compaction wrote."""
    if len(group) > 1 or not group[0].path.rsplit("/", 1)[-1].startswith(MARK):
        yield group


def _replace(settings: Settings, lake: Lake, table: str, group: Sequence[_File]) -> None:
    """Write one file with the rows of a group and commit it in their place."""
    snapshot = lake.snapshot(table)
    handle = snapshot.handle
    if handle is None or not {file.path for file in group} <= {file.path for file in _files(handle)}:
        raise StoreError(f"table {table!r}: another compaction was quicker; run again, nothing is lost")
    partition = group[0].partition
    frame = _read(lake, table, group, partition)
    written = encode(frame, LAYOUTS[table])
    folder = "".join(f"{name}={value}/" for name, value in partition.items())
    path = f"{folder}{MARK}{uuid.uuid4()}.parquet"
    objects.put(objects.client(settings, "lake"), "lake", f"{table}/{path}", written, PARQUET)
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    values: dict[str, str | None] = {name: str(value) for name, value in partition.items()}
    add = AddAction(path, len(written), values, now_ms, False, statistics(frame))
    removes = [RemoveAction(file.path, False, now_ms, file.bytes, values) for file in group]
    number = snapshot.transaction(APPLICATION) + 1
    try:
        handle.create_write_transaction(
            [add, *removes],
            "append",
            handle.schema(),
            PARTITIONS.get(table),
            commit_properties=CommitProperties(app_transactions=[Transaction(APPLICATION, number)]),
        )
    except (DeltaError, OSError) as exc:
        raise StoreError(f"table {table!r}: {len(group)} files could not be compacted: {exc}") from exc


def _read(lake: Lake, table: str, group: Sequence[_File], partition: Mapping[str, Any]) -> pl.DataFrame:
    """Return the rows of a group without the partition's columns, which stand in its files' names.

    Raises:
        StoreError: there are not as many as the table's log says.
    """
    paths = [f"{lake.uri(table)}/{file.path}" for file in group]
    frame = pl.scan_parquet(paths, storage_options=lake.options, hive_partitioning=False).collect()
    expected = sum(file.rows for file in group)
    if len(frame) != expected:
        raise StoreError(f"table {table!r}: expected {expected:,} rows in {len(group)} files, got {len(frame):,}")
    return frame.drop(partition, strict=False)
