"""Readers of files: CSV and Parquet as columns, NDJSON as messages; a part at a time, numbered by row."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
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
from fieldloop.domain.payloads.csv import BLANKS, DECIMAL_COMMA, column_names, split_blanks
from fieldloop.domain.readings import Reason
from fieldloop.stores.sources import text
from fieldloop.stores.sources.layout import Layout, Long, Wide
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


@dataclass(frozen=True)
class Writing:
    """How a file is written, beyond what the profile says of its rows.

    Attributes:
        format_: `csv`, `ndjson` or `parquet`.
        skip_lines: lines above the header, or above the rows where the columns are named otherwise.
        encoding: of text.
        columns: their names where the file has no header; the profile's where there are none.
        wide: see `Wide`.
        long: see `Long`.
    """

    format_: str
    skip_lines: int = 0
    encoding: str = "utf-8"
    columns: tuple[str, ...] = ()
    wide: Wide | None = None
    long: Long | None = None

    def layout(self, request: Request, item: str, names: Sequence[str]) -> Layout:
        """Return how a file's columns become the profile's fields."""
        return Layout(request, item, names, self.wide, self.long)


def parts(path: Path, name: str, request: Request, writing: Writing) -> Iterator[Part]:
    """Yield a file's rows, as many at a time as a batch may have.

    Args:
        path: where it is.
        name: what it is called; its ending says how it is packed.
        request: what is to be read of it.
        writing: how it is written.

    Raises:
        SourceError: it is not such a file, lacks needed columns or is damaged; what came before has been yielded.
    """
    if writing.format_ == "ndjson":
        for part in _ndjson(path, name, writing.skip_lines):
            yield from part.split(request.batch_rows)
        return
    read: Callable[..., Iterator[tuple[Layout, Part]]] = _parquet if writing.format_ == "parquet" else _csv
    for layout, part in read(path, name, request, writing):
        for piece in part.split(request.batch_rows):
            rows, numbers, strange = layout.shaped(piece.rows, piece.numbers)
            yield replace(piece, rows=rows, numbers=numbers, refused=(*piece.refused, *strange))


def _ndjson(path: Path, name: str, skip_lines: int) -> Iterator[Part]:
    number = 0
    for block in text.blocks(path, name):
        lines = [line for line in block.splitlines() if line.strip()]
        numbers = np.arange(number + 1, number + 1 + len(lines))
        number += len(lines)
        first = int(np.searchsorted(numbers, skip_lines, side="right"))
        yield Part(lines[first:], numbers[first:], (), number)


def _parquet(path: Path, name: str, request: Request, writing: Writing) -> Iterator[tuple[Layout, Part]]:
    try:
        file = pq.ParquetFile(path)
        with file:
            names = _leaves(file.schema_arrow)
            layout = writing.layout(request, name, names)
            raw = layout.raw
            require_columns(raw, names, name)
            refused, number = unread_columns(raw, names), 0
            columns = [column for column in raw.wanted if column in names]
            for batch in file.iter_batches(batch_size=raw.batch_rows, columns=columns):
                numbers = np.arange(number + 1, number + 1 + batch.num_rows)
                number += batch.num_rows
                yield layout, Part(flat(pa.Table.from_batches([batch])), numbers, refused, number)
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


def _csv(path: Path, name: str, request: Request, writing: Writing) -> Iterator[tuple[Layout, Part]]:
    reader: _CsvReader | None = None
    number = 0
    refused: tuple[Refusal, ...] = ()
    for block in text.blocks(path, name):
        if reader is None:
            block = _plain(_behind(block, writing.skip_lines, name), request, writing)
            names, block = _header(block, request, name, writing.columns or request.profile.csv.columns)
            layout = writing.layout(request, name, names)
            require_columns(layout.raw, names, name)
            reader, refused = _CsvReader(layout.raw, names), unread_columns(layout.raw, names)
        else:
            block = _plain(block, request, writing)
        part = reader.part(block, number)
        if number == 0 and part.refused and not len(part.numbers):
            detail = (
                f"{part.refused[0].detail}: see `csv.columns` and `csv.delimiter` of profile {request.profile.name}"
            )
            raise SourceError(f"{name}: no row fits: {detail}")
        number = part.last
        yield layout, replace(part, refused=(*refused, *part.refused))
        refused = ()


def _plain(block: bytes, request: Request, writing: Writing) -> bytes:
    """Return text in UTF-8, one blank between cells where blanks part them."""
    if writing.encoding != "utf-8":
        block = block.decode(writing.encoding, errors="replace").encode()
    return split_blanks(block) if request.profile.csv.delimiter == BLANKS else block


def _behind(block: bytes, lines: int, name: str) -> bytes:
    """Return a block without its first lines."""
    for _ in range(lines):
        line, end, block = block.partition(b"\n")
        if not end:
            raise SourceError(f"{name}: expected more than the {lines} lines to be skipped, the last is {line[:80]!r}")
    return block


def _header(block: bytes, request: Request, name: str, given: Sequence[str]) -> tuple[list[str], bytes]:
    """Return the columns' names and the rows below: they are given, else the first line says them."""
    line, _, rest = block.partition(b"\n")
    try:
        cells = next(csv.reader([line.decode()], delimiter=request.profile.csv.delimiter, skipinitialspace=True), [])
    except (UnicodeDecodeError, csv.Error) as exc:
        raise SourceError(
            f"{name}: expected a first line of CSV in UTF-8, or `encoding` in the source's options: {exc}"
        ) from exc
    cells = column_names(cells)
    names = list(given)
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
        self._decimal = request.profile.csv.decimal
        self._strip = request.profile.csv.strip
        wanted = [name for name in names if name in request.wanted]
        self._texts = {name: pa.string() for name in wanted}
        codes = {
            channel.field: frozenset(code for code in channel.missing if isinstance(code, str))
            for channel in request.profile.channels
        }
        self._missing = reduce(frozenset.intersection, codes.values())
        typed = {each.field for each in request.profile.channels if not each.texts}
        typed = {name for name in typed if codes[name] == self._missing}
        if request.profile.clock.kind not in ("iso", "strptime"):
            typed |= set(request.clock_fields)
        self._typed = typed
        self._numbers = {name: pa.float64() if name in typed else pa.string() for name in wanted}

    def part(self, block: bytes, before: int) -> Part:
        """Return a block's rows; `before` rows have come already."""
        try:
            plain = not self._strip
            table, wrong = self._parsed(block, self._numbers, [*self._missing]) if plain else self._as_text(block)
        except pa.ArrowInvalid:
            table, wrong = self._as_text(block)
        last = before + table.num_rows + len(wrong)
        numbers = np.arange(before + 1, last + 1)
        refused = tuple(self._refusal(before, row) for row in wrong)
        return Part(_trimmed(table), np.delete(numbers, [row.number - 1 for row in wrong]), refused, last)

    def _as_text(self, block: bytes) -> tuple[pa.Table, list[Any]]:
        """Parse a block in which a cell is no number."""
        try:
            table, wrong = self._parsed(block, self._texts, [])
        except pa.ArrowInvalid:  # bytes that are no UTF-8 are replaced, and so refused where they matter
            table, wrong = self._parsed(block.decode(errors="replace").encode(), self._texts, [])
        table = self._stripped(table) if self._strip else table
        return (table if self._decimal == "." else self._with_points(table)), wrong

    def _stripped(self, table: pa.Table) -> pa.Table:
        """Return texts without what the profile takes out of them."""
        columns = [pc.dictionary_encode(column.combine_chunks()) for column in table.columns]
        plain = []
        for column in columns:
            entries = [
                None if text is None else re.sub(self._strip, "", text.strip())
                for text in column.dictionary.to_pylist()
            ]
            plain.append(pa.array(entries, pa.string()).take(column.indices))
        return pa.table(plain, names=table.column_names)

    def _with_points(self, table: pa.Table) -> pa.Table:
        """Return texts of numbers with a point in place of their decimal comma."""
        for place, name in enumerate(table.column_names):
            if name in self._typed:
                column = table[name]
                point = pc.replace_substring(column, ",", ".")
                number = pc.match_substring_regex(column, rf"^\s*{DECIMAL_COMMA}\s*$")
                table = table.set_column(place, name, pc.if_else(number, point, column))
        return table

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
                decimal_point=self._decimal,
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
    """Return texts as messages of CSV give them: no blanks around, None for an empty cell."""
    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            trimmed = pc.utf8_trim_whitespace(column)
            empty = pc.equal(trimmed, "")
            table = table.set_column(
                place, table.column_names[place], pc.if_else(empty, pa.scalar(None, pa.string()), trimmed)
            )
    return table
