"""Frames on their way into a table: one after the other, as Arrow, and how their columns are encoded."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import polars as pl
import polars.selectors as cs
import pyarrow as pa
from deltalake import ColumnProperties, WriterProperties

from fieldloop.stores.files import DELTA_ENCODED

_ZSTD_LEVEL: Final = 1  # commits are to be quick; compaction takes its time


class Parts:
    """Frames of one schema, of which two at a time are in memory: one is written while the next is made.

    It is made in a thread of its own, since a source that itself reads tables cannot run inside the writer.

    Attributes:
        first: the first of them.
        failure: what their source raised while they were written.
    """

    def __init__(self, frames: Iterable[pl.DataFrame]) -> None:
        self._frames = iter(frames)
        self.first = next(self._frames)
        self.failure: Exception | None = None

    def arrow(self) -> pa.RecordBatchReader:
        """Return the rows, to be read once."""
        return pa.RecordBatchReader.from_batches(_to_arrow(self.first).schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        frame: pl.DataFrame | None = self.first
        with ThreadPoolExecutor(1) as maker:
            while frame is not None:
                upcoming = maker.submit(next, self._frames, None)
                yield from _to_arrow(frame).to_batches()
                try:
                    frame = upcoming.result()
                except Exception as exc:
                    self.failure = exc
                    raise


def writer_properties(frame: pl.DataFrame) -> WriterProperties:
    """Return how a commit is encoded: times and positions as differences, the rest by dictionary, all under zstd."""
    delta = ColumnProperties(dictionary_enabled=False, encoding="DELTA_BINARY_PACKED")
    return WriterProperties(
        compression="ZSTD",
        compression_level=_ZSTD_LEVEL,
        column_properties={name: delta for name in DELTA_ENCODED if name in frame.columns} or None,
    )


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    """Return a frame as Arrow with texts as texts: files would tell Polars of an `Enum` that the table has not."""
    return frame.with_columns(cs.enum().cast(pl.String)).to_arrow(compat_level=pl.CompatLevel.oldest())
