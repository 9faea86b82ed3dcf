"""A database by an incremental key, through SQLAlchemy: what lies behind the largest key that is in the lake.

The key is read from the last one on, that one included, so that rows which share it are not missed where a run ended
between them; and from `overlap` before it, for writers that commit later than they took their key. What comes again is
dropped by (device, metric, event time).
"""

from collections.abc import Generator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field
from sqlalchemy import URL, ColumnElement, Engine, create_engine, literal_column, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from fieldloop.domain.errors import SourceError, StoreError
from fieldloop.stores.sources.secrets import SecretName, secret
from fieldloop.stores.sources.source import (
    Batch,
    Note,
    Options,
    Position,
    Request,
    require_columnar,
    require_columns,
    unread_columns,
)

CONNECT_TIMEOUT_S: Final = 10
Key = int | float | datetime | date


class SqlOptions(Options):
    """What to read of which database.

    Attributes:
        secret: file in `<secrets>/sources/` with the database's SQLAlchemy URL, user and password included, such as
            `postgresql+psycopg://reader:…@db.example.org/plant?sslmode=verify-full`.
        query: a SELECT without ORDER BY whose columns are the profile's fields and the key.
        key: the column that grows: a number or a time. Rows without one are not read.
        overlap: how far before the last key to read again, in the key's unit; seconds for times.
    """

    secret: SecretName
    query: Annotated[str, Field(min_length=1, max_length=10_000)]
    key: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=63)]
    overlap: Annotated[float, Field(ge=0)] = 0


class SqlSource:
    """Reads a query's rows in order of the key."""

    options: ClassVar[type[Options]] = SqlOptions

    def __init__(self, request: Request, options: SqlOptions) -> None:
        """Remember what to read; see `Source`."""
        require_columnar(request, "rows of a database")
        self._request = request
        self._options = options

    def read(self, done: Sequence[Position]) -> Generator[Batch | Note, None, None]:
        """Yield what is new; see `Source`."""
        url = self._url()
        item = f"{url.host or url.drivername}/{url.database}"
        engine = _engine(url)
        try:
            yield from self._batches(engine, item, _from_json(done[-1]["key"]) if done else None)
        except OperationalError as exc:
            raise StoreError(f"{item}: the database does not answer: {exc.orig}") from exc
        except DBAPIError as exc:
            raise SourceError(f"{item}: the query was refused: {exc.orig}") from exc
        except SQLAlchemyError as exc:
            raise SourceError(f"{item}: the query cannot be run: {exc}") from exc
        finally:
            engine.dispose()

    def _batches(self, engine: Engine, item: str, last: Key | None) -> Generator[Batch, None, None]:
        """Yield rows from a key on."""
        key: ColumnElement[Any] = literal_column(self._options.key)
        inner = text(f"({self._options.query}) AS source_rows")  # the declaration's own text
        query = select(text("*")).select_from(inner).where(key.is_not(None)).order_by(key)
        if last is not None:
            query = query.where(key >= _before(last, self._options.overlap))
        with engine.connect().execution_options(stream_results=True, yield_per=self._request.batch_rows) as connection:
            result = connection.execute(query)
            names = list(result.keys())
            require_columns(self._request, [*names], item)
            if self._options.key not in names:
                raise SourceError(f"{item}: expected column `{self._options.key}`, the key, among {', '.join(names)}")
            wanted = [name for name in names if name != self._options.key or name in self._request.wanted]
            refused = unread_columns(self._request, wanted) if last is None else ()
            for rows in result.partitions():
                columns = dict(zip(names, zip(*rows, strict=True), strict=True))
                keys = columns[self._options.key]
                table = _table(item, {name: columns[name] for name in names if name in self._request.wanted})
                yield Batch(item, table, _numbers(keys, table), {"key": _to_json(item, keys[-1])}, refused)
                refused = ()

    def _url(self) -> URL:
        name = self._options.secret
        try:
            return make_url(secret(self._request.settings, name))
        except ArgumentError as exc:
            raise SourceError(
                f"secret `{name}`: expected the URL of a database, such as postgresql+psycopg://…"
            ) from exc


def _engine(url: URL) -> Engine:
    limits = {"connect_timeout": CONNECT_TIMEOUT_S} if url.drivername.startswith("postgresql") else {}
    try:
        return create_engine(url, connect_args=limits)
    except (SQLAlchemyError, ImportError) as exc:
        raise SourceError(f"no driver for {url.drivername}: {exc}") from exc


def _table(item: str, columns: dict[str, Sequence[Any]]) -> pa.Table:
    arrays = {}
    for name, entries in columns.items():
        try:
            arrays[name] = pa.array(entries)
        except pa.ArrowException as exc:
            raise SourceError(f"{item}: column `{name}`: expected numbers, texts or times: {exc}") from exc
    return pa.table(arrays)


def _numbers(keys: Sequence[Any], table: pa.Table) -> NDArray[np.int64]:
    """Return what names each row: its key where that is a whole number, else a digest of what it says."""
    if all(type(key) is int for key in keys):
        return np.array(keys, dtype=np.int64)
    frame = pl.from_arrow(table.append_column("key", pa.array([str(key) for key in keys])))
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table makes a frame
    return (frame.hash_rows().to_numpy() >> np.uint64(1)).astype(np.int64)


def _before(key: Key, overlap: float) -> Key:
    if isinstance(key, datetime | date):
        return key - timedelta(seconds=overlap)
    return key - (int(overlap) if isinstance(key, int) and overlap == int(overlap) else overlap)


def _to_json(item: str, key: Any) -> Any:
    if isinstance(key, datetime):
        return {"time": (key.astimezone(UTC) if key.tzinfo else key).isoformat()}
    if isinstance(key, date):
        return {"date": key.isoformat()}
    if isinstance(key, int):
        return key
    try:
        return float(key)
    except (TypeError, ValueError) as exc:
        raise SourceError(f"{item}: expected a key that is a number or a time, got {key!r}") from exc


def _from_json(key: Any) -> Key:
    if isinstance(key, dict):
        return datetime.fromisoformat(key["time"]) if "time" in key else date.fromisoformat(key["date"])
    return float(key) if isinstance(key, float) else int(key)
