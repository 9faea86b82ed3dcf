"""Decoded records as columns: what every format gives, and the steps that all formats share.

A format reads its messages into a `Table` of raw entries. `to_records` then refuses records of other devices, reads
the clock, maps texts and status codes, and names each entry that is not a value.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.clock import NOT_A_TIME, US_PER_UNIT, event_times
from fieldloop.domain.columns import Coded, Column, all_floats, to_floats
from fieldloop.domain.profile import Channel, Clock, Profile
from fieldloop.domain.readings import Messages, Reason, Reject

Rows = Sequence[int] | NDArray[np.int64]

_SHOWN_CHARS = 80  # of a refused value
_SHOWN_TEXTS = 6  # of those that a channel knows


@dataclass(frozen=True)
class Records:
    """Decoded records, raw units.

    Attributes:
        message: [R] int64, row of the message.
        event_us: [R] int64, UTC microseconds.
        values: [R, C] float64 in the order of the profile's channels, NaN where a record has no value.
        rejects: what did not decode.
    """

    message: NDArray[np.int64]
    event_us: NDArray[np.int64]
    values: NDArray[np.float64]
    rejects: list[Reject]


@dataclass(frozen=True)
class Table:
    """Records with their raw entries, None where a record has none: numbers, texts, or booleans.

    What comes in columns already (files, tables) may give arrays of numbers, `Coded` entries, and `Stamps` for a clock.

    Attributes:
        rows: [R] row of each record's message, never decreasing.
        clock: [R] entries each, as many columns as `clock_fields` names.
        device: [R] names that the records give their device; None where the profile asks for none.
        channels: [R] entries each, in the order of the profile's channels; read once, and made only then.
        rejects: what was refused on the way.
    """

    rows: Rows
    clock: tuple[Column, ...]
    device: Column | None
    channels: Iterable[Column]
    rejects: list[Reject]


@dataclass
class Points:
    """Single values gathered into records: those of one message and time share a record."""

    channels: int
    rows: list[int] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    columns: list[list[object]] = field(init=False)
    rejects: list[Reject] = field(default_factory=list)
    _record: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.columns = [[] for _ in range(self.channels)]

    def add(self, row: int, time_us: int, channel: int, value: object) -> None:
        """Add one value; a second one of the same channel and time begins another record."""
        if not self.rows or self.rows[-1] != row:
            self._record.clear()
        record = self._record.get(time_us)
        if record is None or self.columns[channel][record] is not None:
            record = self._begin(row, time_us)
        self.columns[channel][record] = value

    def table(self) -> Table:
        """Return the records gathered so far."""
        return Table(self.rows, (self.times_us,), None, tuple(self.columns), self.rejects)

    def _begin(self, row: int, time_us: int) -> int:
        record = self._record[time_us] = len(self.rows)
        self.rows.append(row)
        self.times_us.append(time_us)
        for column in self.columns:
            column.append(None)
        return record


def clock_fields(profile: Profile) -> tuple[str, ...]:
    """Return the fields that make up a record's time, in the order in which `Table.clock` holds them."""
    if profile.clock.kind in ("arrival", "payload"):
        return ()
    return profile.clock.parts or (profile.clock.field,)


def to_records(profile: Profile, messages: Messages, table: Table) -> Records:
    """Return the records of a table: times in UTC microseconds, values as numbers, and what was refused."""
    table = _own_records(profile, messages, table)
    rows = np.asarray(table.rows, dtype=np.int64)
    devices = messages.devices if profile.clock.zone is None else [messages.devices[row] for row in table.rows]
    event_us = event_times(
        profile.clock,
        table.clock,
        devices,
        messages.arrival_us[rows],
        profile.cadence_us,
        messages.sequence[rows],
        messages.carry,
    )
    rejects = list(table.rejects)
    values = np.empty((len(rows), len(profile.channels)), dtype=np.float64)
    for number, (channel, entries) in enumerate(zip(profile.channels, table.channels, strict=True)):
        values[:, number] = _values(channel, entries, table.rows, rejects)
    readable = event_us != NOT_A_TIME
    if readable.all():
        return Records(rows, event_us, values, rejects)
    rejects += [_no_time(profile, table, int(index)) for index in np.flatnonzero(~readable)]
    return Records(rows[readable], event_us[readable], values[readable], rejects)


def merged(parts: Sequence[Records]) -> Records:
    """Return the records of a batch that was decoded in parts, in order of their messages."""
    if len(parts) == 1:
        return parts[0]
    message = np.concatenate([part.message for part in parts])
    order = np.argsort(message, kind="stable")
    return Records(
        message[order],
        np.concatenate([part.event_us for part in parts])[order],
        np.concatenate([part.values for part in parts])[order],
        sorted((reject for part in parts for reject in part.rejects), key=lambda reject: reject.message),
    )


def shown(value: object) -> str:
    """Return a refused value as JSON, shortened, for a message to a person."""
    plain = value.item() if isinstance(value, np.generic) else value
    text = msgspec.json.encode(plain, enc_hook=repr).decode()
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def unknown_field(row: int, name: str) -> Reject:
    """Return the refusal of a field that no channel reads."""
    return Reject(row, name, Reason.UNKNOWN_METRIC, f"no channel reads field `{name}`")


def _own_records(profile: Profile, messages: Messages, table: Table) -> Table:
    """Refuse records that name another device than the topic they came on."""
    if table.device is None:
        return table
    own = [messages.devices[row] for row in table.rows]
    if list(table.device) == own:
        return table
    kept = [name is None or name == device for name, device in zip(table.device, own, strict=True)]
    foreign = [
        Reject(row, None, Reason.WRONG_DEVICE, f"the record names device `{name}`, its topic belongs to `{device}`")
        for row, name, device, fine in zip(table.rows, table.device, own, kept, strict=True)
        if not fine
    ]
    return replace(
        table,
        rows=list(compress(table.rows, kept)),
        clock=tuple(list(compress(column, kept)) for column in table.clock),
        channels=(list(compress(column, kept)) for column in table.channels),
        rejects=table.rejects + foreign,
    )


def _values(channel: Channel, entries: Column, rows: Rows, rejects: list[Reject]) -> NDArray[np.float64]:
    """Return a channel's raw numbers ([R] float64), NaN where there is none; name the entries that are not values."""
    if isinstance(entries, Coded):
        return _coded_values(channel, entries, rows, rejects)
    if channel.texts or channel.missing:
        entries = _translated(channel, entries)
    values = all_floats(entries)
    if values is None:
        values = to_floats(entries)
        rejects += [
            Reject(int(rows[index]), channel.metric, Reason.WRONG_TYPE, _no_number(channel, entries[index]))
            for index in np.flatnonzero(np.isnan(values)).tolist()
            if not _is_missing(entries[index])
        ]
    codes = [code for code in channel.missing if isinstance(code, float)]
    if codes:
        values[np.isin(values, codes)] = np.nan
    return values


def _coded_values(channel: Channel, column: Coded, rows: Rows, rejects: list[Reject]) -> NDArray[np.float64]:
    """Look at each different entry once, and give every record its number."""
    strange: list[Reject] = []
    numbers = _values(channel, column.entries, range(len(column.entries)), strange)
    rejects += [
        Reject(rows[index], reject.metric, reject.reason, reject.detail)
        for reject in strange
        for index in np.flatnonzero(column.codes == reject.message).tolist()
    ]
    return np.append(numbers, np.nan)[column.codes]


def _translated(channel: Channel, entries: Column) -> Column:
    """Replace the channel's texts by their numbers, and those that say that there is no value by None."""
    meaning: dict[str, float | None] = {**dict(channel.texts)}
    meaning |= {code: None for code in channel.missing if isinstance(code, str)}
    if not meaning or isinstance(entries, np.ndarray):  # an array has numbers alone
        return entries

    def translate(entry: object) -> object:
        if isinstance(entry, str):
            return meaning.get(entry, entry)
        if isinstance(entry, bool):
            return meaning.get("true" if entry else "false", str(entry))
        return entry

    return [translate(entry) for entry in entries]


def _is_missing(entry: object) -> bool:
    return entry is None or str(entry).strip().lower() == "nan"


def _no_number(channel: Channel, entry: object) -> str:
    known = [text for text, _ in channel.texts]
    more = f" or one of {', '.join(known[:_SHOWN_TEXTS])}{', …' if len(known) > _SHOWN_TEXTS else ''}" if known else ""
    return f"field `{channel.field}`: expected a number{more}, got {shown(entry)}"


def _no_time(profile: Profile, table: Table, index: int) -> Reject:
    names = ", ".join(f"`{name}`" for name in clock_fields(profile)) or "of the payload"
    got = ", ".join(shown(column[index]) for column in table.clock)
    detail = f"field {names}: expected {_expected_time(profile.clock)}, got {got}"
    return Reject(int(table.rows[index]), None, Reason.NO_EVENT_TIME, detail, event_us=_beyond(profile, table, index))


def _expected_time(clock: Clock) -> str:
    if clock.kind == "strptime":
        return f"time written as `{clock.pattern}`"
    if clock.kind == "elapsed":
        return "a number of what has elapsed since the start"
    hint = " with an offset or a zone in the profile" if clock.kind == "iso" and not clock.zone else ""
    return f"{clock.kind} time{hint}"


def _beyond(profile: Profile, table: Table, index: int) -> int | None:
    """Return an epoch that is a number, yet no time of ours, in microseconds: a clock that counts another unit."""
    unit_us = US_PER_UNIT.get(profile.clock.kind)
    if unit_us is None or not table.clock:
        return None
    number = float(to_floats([table.clock[0][index]])[0]) * unit_us
    return int(number) if np.isfinite(number) else None
