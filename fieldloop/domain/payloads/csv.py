"""CSV lines: a record a line, several lines a message; a field is a column's name."""

import csv
import re
from collections.abc import Sequence
from typing import Final

from fieldloop.domain.payloads.records import Records, Table, clock_fields, shown, to_records, unknown_field
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Reason, Reject

BLANKS: Final = " "  # as delimiter: any number of blanks and tabs
UNNAMED: Final = "column_"  # what a column without a name is called, with its place from 1

_Columns = dict[str, list[str | None]]
DECIMAL_COMMA: Final = r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?"
_NUMBER: Final = re.compile(DECIMAL_COMMA)


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; one bad line costs only itself.

    Where the profile names the columns, a first line with just these names is passed over; else the first line names
    them. An empty cell is a missing value.
    """
    columns: _Columns = {name: [] for name in _wanted(profile)}
    rows: list[int] = []
    rejects: list[Reject] = []
    for row, payload in enumerate(messages.payloads):
        rows += [row] * _read(profile, columns, row, payload, rejects)
    table = Table(
        rows=rows,
        clock=tuple(columns[name] for name in clock_fields(profile)),
        device=None if profile.device_field is None else columns[profile.device_field],
        channels=tuple(columns[channel.field] for channel in profile.channels),
        rejects=rejects,
    )
    return to_records(profile, messages, table)


def column_names(cells: Sequence[str]) -> list[str]:
    """Return the names that a first line gives its columns; one without a name is called by its place."""
    return [cell.strip() or f"{UNNAMED}{place}" for place, cell in enumerate(cells, 1)]


def split_blanks(block: bytes) -> bytes:
    """Return lines with one blank between cells, and none around them."""
    return b"\n".join(b" ".join(line.split()) for line in block.split(b"\n"))


def with_point(cell: str) -> str:
    """Return a number that is written with a decimal comma with a point; anything else as it is."""
    return cell.replace(",", ".") if _NUMBER.fullmatch(cell) else cell


def _wanted(profile: Profile) -> tuple[str, ...]:
    """Return the columns that the profile reads, each once."""
    device = () if profile.device_field is None else (profile.device_field,)
    fields = tuple(channel.field for channel in profile.channels)
    return tuple(dict.fromkeys((*clock_fields(profile), *device, *fields)))


def _read(profile: Profile, columns: _Columns, row: int, payload: bytes, rejects: list[Reject]) -> int:
    """Add a message's lines to the columns and return their number; name what is refused."""
    try:
        text = (split_blanks(payload) if profile.csv.delimiter == BLANKS else payload).decode().splitlines()
        split = list(csv.reader(text, delimiter=profile.csv.delimiter, skipinitialspace=True))
    except (UnicodeDecodeError, csv.Error) as error:
        rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected CSV in UTF-8: {error}"))
        return 0
    lines = [cells for cells in split if cells]
    if not lines:
        rejects.append(Reject(row, None, Reason.UNDECODABLE, "expected lines of CSV, got none"))
        return 0
    names = list(profile.csv.columns)
    if not names or [cell.strip() for cell in lines[0]] == names:
        names = column_names(lines.pop(0))
    if names != list(columns):
        unknown = [name for name in names if name not in columns and not passed_over(profile, name)]
        rejects += [unknown_field(row, name) for name in dict.fromkeys(unknown)]
    return _add(profile, columns, names, _whole(profile, len(names), row, lines, rejects))


def _whole(
    profile: Profile, cells_expected: int, row: int, lines: list[list[str]], rejects: list[Reject]
) -> list[list[str]]:
    """Return the lines that have as many cells as they should; name the others."""
    if all(len(cells) == cells_expected for cells in lines):
        return lines
    wrong = [cells for cells in lines if len(cells) != cells_expected]
    rejects += [
        Reject(
            row,
            None,
            Reason.UNDECODABLE,
            f"expected {cells_expected} cells, got {len(cells)}: {shown(profile.csv.delimiter.join(cells))}",
        )
        for cells in wrong
    ]
    return [cells for cells in lines if len(cells) == cells_expected]


def _plain(profile: Profile, cells: Sequence[str]) -> list[str | None]:
    """Return cells without what is around them, numbers with a point, None for an empty one."""
    if profile.csv.strip:
        cells = [re.sub(profile.csv.strip, "", cell.strip()) for cell in cells]
    trimmed = [cell.strip() or None for cell in cells]
    point = profile.csv.decimal == "."
    return trimmed if point else [None if cell is None else with_point(cell) for cell in trimmed]


def passed_over(profile: Profile, name: str) -> bool:
    """Say whether a column that no channel reads is no trouble: the profile says so, or it has no name."""
    return profile.ignores(name) or re.fullmatch(rf"{UNNAMED}\d+", name) is not None


def _add(profile: Profile, columns: _Columns, names: list[str], lines: list[list[str]]) -> int:
    """Add lines to the columns, None for an empty cell, and return their number."""
    found = dict(zip(names, zip(*lines, strict=True), strict=True)) if lines else {}
    for name, column in columns.items():
        cells = found.get(name)
        column += [None] * len(lines) if cells is None else _plain(profile, cells)
    return len(lines)
