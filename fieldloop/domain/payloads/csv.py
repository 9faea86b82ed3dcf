"""CSV lines: a record a line, several lines a message; a field is a column's name."""

import csv

from fieldloop.domain.payloads.records import Records, Table, clock_fields, shown, to_records, unknown_field
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Reason, Reject

_Line = list[str | None]


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; one bad line costs only itself.

    Where the profile names the columns, a first line with just these names is passed over; else the first line names
    them. An empty cell is a missing value.
    """
    wanted = _wanted(profile)
    rows: list[int] = []
    lines: list[_Line] = []
    rejects: list[Reject] = []
    for row, payload in enumerate(messages.payloads):
        found = _message_lines(profile, wanted, row, payload, rejects)
        lines += found
        rows += [row] * len(found)
    columns = dict(zip(wanted, zip(*lines, strict=True), strict=True)) if lines else dict.fromkeys(wanted, ())
    table = Table(
        rows=rows,
        clock=tuple(columns[name] for name in clock_fields(profile)),
        device=None if profile.device_field is None else columns[profile.device_field],
        channels=tuple(columns[channel.field] for channel in profile.channels),
        rejects=rejects,
    )
    return to_records(profile, messages, table)


def _wanted(profile: Profile) -> tuple[str, ...]:
    """Return the columns that the profile reads, each once."""
    device = () if profile.device_field is None else (profile.device_field,)
    fields = tuple(channel.field for channel in profile.channels)
    return tuple(dict.fromkeys((*clock_fields(profile), *device, *fields)))


def _message_lines(
    profile: Profile, wanted: tuple[str, ...], row: int, payload: bytes, rejects: list[Reject]
) -> list[_Line]:
    """Return the cells of the wanted columns, line by line; name the lines that are refused."""
    try:
        split = list(csv.reader(payload.decode().splitlines(), delimiter=profile.csv.delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected CSV in UTF-8: {error}"))
        return []
    lines = [cells for cells in split if cells]
    if not lines:
        rejects.append(Reject(row, None, Reason.UNDECODABLE, "expected lines of CSV, got none"))
        return []
    names = list(profile.csv.columns)
    if not names or [cell.strip() for cell in lines[0]] == names:
        names = [cell.strip() for cell in lines.pop(0)]
    return _cells(profile, wanted, names, row, lines, rejects)


def _cells(
    profile: Profile, wanted: tuple[str, ...], names: list[str], row: int, lines: list[list[str]], rejects: list[Reject]
) -> list[_Line]:
    unknown = [name for name in names if name not in wanted and not profile.ignores(name)]
    rejects += [unknown_field(row, name) for name in dict.fromkeys(unknown)]
    place = [names.index(name) if name in names else -1 for name in wanted]
    found: list[_Line] = []
    for cells in lines:
        if len(cells) == len(names):
            found.append([(cells[at].strip() or None) if at >= 0 else None for at in place])
        else:
            detail = f"expected {len(names)} cells, got {len(cells)}: {shown(profile.csv.delimiter.join(cells))}"
            rejects.append(Reject(row, None, Reason.UNDECODABLE, detail))
    return found
