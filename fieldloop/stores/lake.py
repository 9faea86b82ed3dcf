"""The lake: Delta tables on the object store, written with application transactions and read with Polars."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from fieldloop.domain.errors import StoreError
from fieldloop.stores import files, objects
from fieldloop.stores.frames import Parts, writer_properties
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import PARTITIONS, SCHEMAS

METADATA_PREFIX: Final = "fieldloop."
PARQUET: Final = "application/vnd.apache.parquet"
WRITES: Final = ("WRITE", "CREATE TABLE", "CREATE OR REPLACE TABLE")  # operations that decide which rows there are
COMMITS: Final = 1_000  # of a table's history that are looked at, at most

_LOG_DAYS: Final = 36_500  # that the log of grids and windows is kept: a commit a training


@dataclass(frozen=True)
class Commit:
    """One version of a table: what made it, when, and what `append` or `replace` was given as metadata."""

    version: int
    operation: str
    at: datetime
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Snapshot:
    """A table as it was when it was looked at: what was found in it can decide what is appended to it.

    Attributes:
        table: the table's name.
        handle: the version looked at; None where there was no such table yet.
    """

    table: str
    handle: DeltaTable | None
    _options: dict[str, str] = field(repr=False)

    def scan(self) -> pl.LazyFrame:
        """Return the rows of that version."""
        if self.handle is None:
            return pl.LazyFrame(schema=SCHEMAS[self.table])
        return pl.scan_delta(self.handle, storage_options=self._options)

    def transaction(self, application: str) -> int:
        """Return the last transaction that an application had committed; 0 where there was none."""
        return 0 if self.handle is None else self.handle.transaction_version(application) or 0

    def has(self, transactions: Mapping[str, int]) -> bool:
        """Say whether all of these transactions, or later ones of their applications, had been committed."""
        return bool(transactions) and all(self.transaction(name) >= number for name, number in transactions.items())


class Lake:
    """The tables of one installation; holds no connection, only where they are and the rights to them.

    Attributes:
        settings: of the installation.
        options: what Delta and Polars need to reach the tables; has secrets in it.
    """

    def __init__(self, settings: Settings) -> None:
        self.options = objects.delta_options(settings)
        self.settings = settings

    def uri(self, table: str) -> str:
        """Return the table's address."""
        return f"s3://lake/{table}"

    def version(self, table: str) -> int | None:
        """Return the table's newest version; None where there is no such table yet."""
        handle = self.open(table)
        return None if handle is None else handle.version()

    def open(self, table: str, version: int | None = None) -> DeltaTable | None:
        """Return a fresh handle of a table; None where there is no such table yet.

        Raises:
            StoreError: the store refuses or does not answer, or there is no such version.
        """
        try:
            return DeltaTable(self.uri(table), version=version, storage_options=self.options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as exc:
            wanted = "newest version" if version is None else f"version {version}"
            raise StoreError(
                f"table {table!r} ({wanted}) cannot be opened: there is no such version, its log was cleaned up, or "
                f"the store does not answer: {exc}"
            ) from exc

    def scan(self, table: str, version: int | None = None) -> pl.LazyFrame:
        """Return a table's rows; a known table that is not there yet has none.

        Raises:
            StoreError: neither there nor known, or there is no such version.
        """
        handle = self.open(table, version)
        if handle is not None:
            return pl.scan_delta(handle, storage_options=self.options)
        if table in SCHEMAS and version is None:
            return pl.LazyFrame(schema=SCHEMAS[table])
        raise StoreError(f"table {table!r} does not exist: run the flow that makes it")

    def require(self, table: str, version: int) -> None:
        """Make sure that a version of a table can still be read, before anything is made from it.

        Raises:
            StoreError: there is no such version, or files of it were deleted; says so.
        """
        handle = self.open(table, version)
        if handle is None:
            raise StoreError(f"table {table!r} does not exist: run the flow that makes it")
        prefix, there = self.uri(""), objects.names(objects.client(self.settings, "lake"), "lake", f"{table}/")
        files = [uri.removeprefix(prefix) for uri in handle.file_uris()]
        gone = [file for file in files if file not in there]
        if gone:
            raise StoreError(
                f"version {version} of table {table!r} can no longer be read: {len(gone)} of its {len(files)} files "
                "were deleted, by the flow `maintain` or by hand; restore the bucket `lake` from a backup"
            )

    def snapshot(self, table: str) -> Snapshot:
        """Return a table as it is now.

        Raises:
            StoreError: the store refuses or does not answer.
        """
        return Snapshot(table, self.open(table), self.options)

    def renewed(self, snapshot: Snapshot) -> Snapshot:
        """Return the table of a snapshot as it is now; the one given is not to be used any more.

        Raises:
            StoreError: the store refuses or does not answer.
        """
        if snapshot.handle is None:
            return self.snapshot(snapshot.table)
        try:
            snapshot.handle.update_incremental()
        except (DeltaError, OSError) as exc:
            raise StoreError(f"table {snapshot.table!r} cannot be looked at: {exc}") from exc
        return snapshot

    def transaction(self, table: str, application: str) -> int:
        """Return the last transaction that an application committed to a table; 0 where there is none."""
        return self.snapshot(table).transaction(application)

    def append(
        self,
        table: str,
        frame: pl.DataFrame,
        transaction: tuple[str, int] | Mapping[str, int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        snapshot: Snapshot | None = None,
        unless: Sequence[str] = (),
    ) -> int:
        """Append rows, as one commit with its application transaction, and return the new version.

        A transaction that the table already has is not committed again: the call then changes nothing.

        Args:
            table: the table's name.
            frame: the rows.
            transaction: the application and its transaction, or several applications and theirs.
            metadata: kept with the commit.
            snapshot: the version that decided which rows these are; the newest where left out.
            unless: applications that must not have committed since the snapshot.

        Raises:
            StoreError: one of these, or another writer of the same application, committed in between.
        """
        base = snapshot or self.snapshot(table)
        own = dict([transaction] if isinstance(transaction, tuple) else transaction or {})
        if base.handle is not None and base.has(own):
            return base.handle.version()
        # Committing an application's transaction anew as it was makes Delta hold the two writers apart.
        held = {application: base.transaction(application) for application in unless}
        return self._write(table, base.handle, frame, "append", {**held, **own}, metadata)

    def create(self, table: str) -> None:
        """Make a known table that is not there yet, empty, so that several writers can append to it at once.

        Raises:
            StoreError: the store refuses or does not answer, or another writer made it just then.
        """
        if self.open(table) is None:
            self._write(table, None, pl.DataFrame(schema=SCHEMAS[table]), "append", {}, None)

    def replace(
        self, table: str, frames: pl.DataFrame | Iterable[pl.DataFrame], metadata: Mapping[str, Any] | None = None
    ) -> int:
        """Make these rows the table's newest version, older ones stay readable; return the version.

        Several frames of one schema are written as they come, in one commit; what their source raises comes out here.
        """
        parts = Parts([frames] if isinstance(frames, pl.DataFrame) else frames)
        try:
            return self._write(table, self.open(table), parts, "overwrite", {}, metadata)
        except Exception:
            if parts.failure is not None:
                raise parts.failure from None
            raise

    def put(self, key: str, data: bytes) -> None:
        """Keep an object beside the tables, whole, in place of the one before.

        Raises:
            StoreError: the store refuses or does not answer.
        """
        objects.put(objects.client(self.settings, "lake"), "lake", key, data)

    def get(self, key: str) -> bytes | None:
        """Return an object that `put` wrote; None where there is none.

        Raises:
            StoreError: the store refuses or does not answer.
        """
        return objects.find(objects.client(self.settings, "lake"), "lake", key)

    def metadata(self, table: str) -> list[dict[str, str]]:
        """Return what `append` and `replace` were given as metadata, newest commit first."""
        handle = self.open(table)
        return [] if handle is None else [_own_metadata(entry) for entry in handle.history()]

    def commits(self, table: str, limit: int = COMMITS, version: int | None = None) -> list[Commit]:
        """Return a table's commits as far as its log reaches back, newest first, from the given version on."""
        handle = self.open(table, version)
        return [] if handle is None else [_commit(entry) for entry in handle.history(limit)]

    def _write(
        self,
        table: str,
        handle: DeltaTable | None,
        rows: pl.DataFrame | Parts,
        mode: Any,
        transactions: Mapping[str, int],
        metadata: Mapping[str, Any] | None,
    ) -> int:
        properties = CommitProperties(
            custom_metadata={f"{METADATA_PREFIX}{key}": str(value) for key, value in (metadata or {}).items()},
            app_transactions=[Transaction(*each) for each in transactions.items()] or None,
        )
        try:
            if handle is not None and mode == "append" and isinstance(rows, pl.DataFrame) and _is_plain(table, rows):
                files.append(handle, rows, PARTITIONS[table], self._put_into(table), properties)
            else:
                parts = rows if isinstance(rows, Parts) else Parts([rows])
                write_deltalake(
                    handle if handle is not None else self.uri(table),
                    parts.arrow(),
                    mode=mode,
                    schema_mode="overwrite" if mode == "overwrite" else None,
                    partition_by=PARTITIONS.get(table) if handle is None else None,
                    configuration=_log_kept(table) if handle is None else None,
                    storage_options=self.options,
                    commit_properties=properties,
                    writer_properties=writer_properties(parts.first),
                )
        except CommitFailedError as exc:
            raise StoreError(
                f"table {table!r}: another writer was quicker ({exc}); run again, nothing is lost"
            ) from exc
        except (DeltaError, OSError) as exc:
            raise StoreError(f"table {table!r} could not be written: {exc}") from exc
        version = handle.version() if handle is not None else self.version(table)
        if version is None:
            raise StoreError(f"table {table!r} is gone right after it was written")
        return version

    def _put_into(self, table: str) -> Callable[[str, bytes], None]:
        store = objects.client(self.settings, "lake")
        return lambda path, data: objects.put(store, "lake", f"{table}/{path}", data, PARQUET)


def _is_plain(table: str, rows: pl.DataFrame) -> bool:
    """Say whether these are rows of a partitioned table just as it is known, so that nothing has to be cast."""
    kinds = {name: pl.String() if isinstance(kind, pl.Enum) else kind for name, kind in rows.schema.items()}
    return table in PARTITIONS and len(rows) > 0 and kinds == dict(SCHEMAS[table])


def _log_kept(table: str) -> dict[str, str | None] | None:
    """What a new table is told of its log: models name versions of grids and windows for as long as they are there."""
    made_from = table.startswith(("grid/", "windows/"))
    return {"delta.logRetentionDuration": f"interval {_LOG_DAYS} days"} if made_from else None


def _own_metadata(entry: Mapping[str, Any]) -> dict[str, str]:
    return {
        key.removeprefix(METADATA_PREFIX): str(value) for key, value in entry.items() if key.startswith(METADATA_PREFIX)
    }


def _commit(entry: Mapping[str, Any]) -> Commit:
    at = datetime.fromtimestamp(entry.get("timestamp", 0) / 1000, UTC)
    return Commit(int(entry["version"]), str(entry.get("operation", "")), at, _own_metadata(entry))
