"""Readers of files: CSV and Parquet as columns, NDJSON as messages; a part at a time, numbered by row."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fieldloop.domain.errors import SourceError
from fieldloop.domain.readings import Reason
from fieldloop.stores.sources import text
from fieldloop.stores.sources.source import Refusal, Request, require_columns, unread_columns

FORMATS: Final = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".dat": "csv",
    ".ndjson": "ndjson", ".jsonl": "ndjson",
    ".parquet": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Some rows of a file.

    Attributes:
        rows: columns, or messages.
        numbers: [N] int64, from 1; blank lines are not counted.
        refused: rows between them that could not be split.
        last: the last row's number, refused or not.
    """

    rows: pa.Table | Sequence[bytes]
    numbers: NDArray[np.int64]
    refused: tuple[Refusal, ...]
    last: int

    def behind(self, number: int) -> "Part":
        """Return what comes after a row."""
        start = int(np.searchsorted(self.numbers, number, side="right"))
        refused = tuple(each for each in self.refused if each.number > number)
        return replace(self, rows=self.rows[start:], numbers=self.numbers[start:], refused=refused)

    def split(self, rows: int) -> Iterator["Part"]:
        """Yield it in parts of at most so many rows."""
        for start in range(0, max(len(self.numbers), 1), rows):
            end = start + rows
            numbers = self.numbers[start:end]
            last = int(numbers[-1]) if end < len(self.numbers) else self.last
            before = int(self.numbers[start - 1]) if start else -1
            refused = tuple(each for each in self.refused if before < each.number <= last)
            yield Part(self.rows[start:end], numbers, refused, last)


def parts(path: Path, name: str, format_: str, request: Request, skip_lines: int) -> Iterator[Part]:
    """Yield a file's rows, as many at a time as a batch may have.

    Args:
        path: where it is.
        name: what it is called; its ending says how it is packed.
        format_: `csv`, `ndjson` or `parquet`.
        request: what is to be read of it.
        skip_lines: lines above the header, or above the rows where the profile names the columns.

    Raises:
        SourceError: it is not such a file, lacks needed columns or is damaged; what came before has been yielded.
    """
    if format_ == "parquet":
        found = _parquet(path, name, request)
    elif format_ == "csv":
        found = _csv(path, name, request, skip_lines)
    else:
        found = _ndjson(path, name, skip_lines)
    for part in found:
        yield from part.split(request.batch_rows)


def _ndjson(path: Path, name: str, skip_lines: int) -> Iterator[Part]:
    number = 0
    for block in text.blocks(path, name):
        lines = [line for line in block.splitlines() if line.strip()]
        numbers = np.arange(number + 1, number + 1 + len(lines))
        number += len(lines)
        first = int(np.searchsorted(numbers, skip_lines, side="right"))
        yield Part(lines[first:], numbers[first:], (), number)


def _parquet(path: Path, name: str, request: Request) -> Iterator[Part]:
    try:
        file = pq.ParquetFile(path)
        with file:
            names = _leaves(file.schema_arrow)
            require_columns(request, names, name)
            refused, number = unread_columns(request, names), 0
            columns = [column for column in request.wanted if column in names]
            for batch in file.iter_batches(batch_size=request.batch_rows, columns=columns):
                numbers = np.arange(number + 1, number + 1 + batch.num_rows)
                number += batch.num_rows
                yield Part(flat(pa.Table.from_batches([batch])), numbers, refused, number)
                refused = ()
    except (pa.ArrowException, OSError) as exc:
        raise SourceError(f"{name}: not a whole Parquet file: {exc}") from exc


def flat(table: pa.Table) -> pa.Table:
    """Return a table without nesting: a field within a struct is named by its path, with dots."""
    while any(pa.types.is_struct(column.type) for column in table.schema):
        table = table.flatten()
    return table


def _leaves(schema: pa.Schema) -> list[str]:
    return list(flat(schema.empty_table()).column_names)


def _csv(path: Path, name: str, request: Request, skip_lines: int) -> Iterator[Part]:
    reader: _CsvReader | None = None
    number = 0
    refused: tuple[Refusal, ...] = ()
    for block in text.blocks(path, name):
        if reader is None:
            block = _behind(block, skip_lines, name)
            names, block = _header(block, request, name)
            require_columns(request, names, name)
            reader, refused = _CsvReader(request, names), unread_columns(request, names)
        part = reader.part(block, number)
        if number == 0 and part.refused and not len(part.numbers):
            raise SourceError(f"{name}: no row fits: {part.refused[0].detail}")
        number = part.last
        yield replace(part, refused=(*refused, *part.refused))
        refused = ()


def _behind(block: bytes, lines: int, name: str) -> bytes:
    """Return a block without its first lines."""
    for _ in range(lines):
        line, end, block = block.partition(b"\n")
        if not end:
            raise SourceError(f"{name}: expected more than the {lines} lines to be skipped, the last is {line[:80]!r}")
    return block


def _header(block: bytes, request: Request, name: str) -> tuple[list[str], bytes]:
    """Return the columns' names and the rows below: the profile names them, else the first line does."""
    line, _, rest = block.partition(b"\n")
    try:
        cells = next(csv.reader([line.decode()], delimiter=request.profile.csv.delimiter, skipinitialspace=True), [])
    except (UnicodeDecodeError, csv.Error) as exc:
        raise SourceError(f"{name}: expected a first line of CSV in UTF-8: {exc}") from exc
    cells = [cell.strip() for cell in cells]
    names = list(request.profile.csv.columns)
    if names:
        return names, rest if cells == names else block
    if repeated := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise SourceError(f"{name}: the first line names columns twice: {', '.join(repeated)}")
    return cells, rest


class _CsvReader:
    """Parses blocks of CSV, numbers straight to numbers where all are; else the cells stay text."""

    def __init__(self, request: Request, names: Sequence[str]) -> None:
        self._names = list(names)
        self._delimiter = request.profile.csv.delimiter
        wanted = [name for name in names if name in request.wanted]
        self._texts = {name: pa.string() for name in wanted}
        codes = {
            channel.field: frozenset(code for code in channel.missing if isinstance(code, str))
            for channel in request.profile.channels
        }
        self._missing = reduce(frozenset.intersection, codes.values())
        typed = {each.field for each in request.profile.channels if not each.texts}
        typed = {name for name in typed if codes[name] == self._missing}
        if request.profile.clock.kind != "iso":
            typed |= set(request.clock_fields)
        self._numbers = {name: pa.float64() if name in typed else pa.string() for name in wanted}

    def part(self, block: bytes, before: int) -> Part:
        """Return a block's rows; `before` rows have come already."""
        try:
            table, wrong = self._parsed(block, self._numbers, [*self._missing])
        except pa.ArrowInvalid:
            table, wrong = self._as_text(block)
        last = before + table.num_rows + len(wrong)
        numbers = np.arange(before + 1, last + 1)
        refused = tuple(self._refusal(before, row) for row in wrong)
        return Part(_trimmed(table), np.delete(numbers, [row.number - 1 for row in wrong]), refused, last)

    def _as_text(self, block: bytes) -> tuple[pa.Table, list[Any]]:
        """Parse a block in which a cell is no number."""
        try:
            return self._parsed(block, self._texts, [])
        except pa.ArrowInvalid:  # bytes that are no UTF-8 are replaced, and so refused where they matter
            return self._parsed(block.decode(errors="replace").encode(), self._texts, [])

    def _parsed(self, block: bytes, types: dict[str, pa.DataType], missing: list[str]) -> tuple[pa.Table, list[Any]]:
        wrong: list[Any] = []

        def skip(row: Any) -> str:
            wrong.append(row)
            return "skip"

        table = pacsv.read_csv(
            pa.BufferReader(block),
            read_options=pacsv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(block) + 1),
            parse_options=pacsv.ParseOptions(delimiter=self._delimiter, invalid_row_handler=skip),
            convert_options=pacsv.ConvertOptions(
                include_columns=list(types),
                column_types=types,
                null_values=["", *missing],
                strings_can_be_null=False,
                quoted_strings_can_be_null=True,
            ),
        )
        return table, wrong

    @staticmethod
    def _refusal(before: int, row: Any) -> Refusal:
        detail = f"expected {row.expected_columns} cells, got {row.actual_columns}"
        return Refusal(before + row.number, None, Reason.UNDECODABLE, detail, row.text.encode())


def _trimmed(table: pa.Table) -> pa.Table:
    """Return texts as messages of CSV give them: no blanks in front, None for an empty cell."""
    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            trimmed = pc.utf8_ltrim_whitespace(column)
            empty = pc.equal(trimmed, "")
            table = table.set_column(
                place, table.column_names[place], pc.if_else(empty, pa.scalar(None, pa.string()), trimmed)
            )
    return table
