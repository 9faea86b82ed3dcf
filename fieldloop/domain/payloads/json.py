"""JSON payloads: an object a record, or an array of them, flat or nested; a field is a path with dots.

Messages that are flat, all numbers and written alike are read as columns of bytes (`flat`), all others field by field.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.payloads import fields, flat
from fieldloop.domain.payloads.records import Records, Table, clock_fields, merged, to_records
from fieldloop.domain.profile import Channel, Profile
from fieldloop.domain.readings import Messages

PROFILES: Final = 64  # whose layouts are remembered


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; one bad message or field costs only itself."""
    if len(messages.payloads) < flat.FEWEST:
        return decode_each(profile, messages)
    rest = np.arange(len(messages.payloads), dtype=np.int64)
    parts = []
    for found in _flat(profile, messages):
        parts.append(to_records(profile, messages, _flat_table(profile, found)))
        rest = found.rest
    if len(rest) or not parts:
        parts.append(_of_rows(decode_each(profile, messages.take(rest)), rest))
    return merged(parts)


def decode_each(profile: Profile, messages: Messages) -> Records:
    """Decode messages one by one, whatever is in them."""
    layout = _layout(profile)
    found = layout.find(messages)
    table = Table(
        rows=found.rows,
        clock=tuple(layout.column(found, name) for name in clock_fields(profile)),
        device=None if profile.device_field is None else layout.column(found, profile.device_field),
        channels=(layout.column(found, channel.field) for channel in profile.channels),
        rejects=found.rejects,
    )
    return to_records(profile, messages, table)


def clock_kinds(profile: Profile) -> dict[str, object]:
    """Return the fields of the clock and what each must be."""
    kind = {"iso": fields.TEXT, "strptime": fields.TEXT, "parts": fields.ANY}.get(profile.clock.kind, fields.NUMBER)
    return dict.fromkeys(clock_fields(profile), kind)


@lru_cache(maxsize=PROFILES)
def _layout(profile: Profile) -> fields.Fields:
    """Return the layout of a profile's records; to make one costs more than to decode a handful of messages."""
    names = {channel.field: channel.metric for channel in profile.channels}
    return fields.Fields(_kinds(profile), profile.ignore, names)


def _kinds(profile: Profile) -> dict[str, object]:
    kinds = {channel.field: _kind(channel) for channel in profile.channels} | clock_kinds(profile)
    return kinds if profile.device_field is None else kinds | {profile.device_field: fields.TEXT}


def _kind(channel: Channel) -> object:
    texts = channel.texts or any(isinstance(code, str) for code in channel.missing)
    return fields.ANY if texts else fields.NUMBER


def _flat(profile: Profile, messages: Messages) -> Iterator[flat.Flat]:
    """Yield what can be read as columns of bytes; nothing where the profile has more than plain numbers."""
    kinds = _kinds(profile)
    plain = frozenset(name for name, kind in kinds.items() if kind is fields.NUMBER and "." not in name)
    if plain == kinds.keys():
        yield from flat.read(messages.payloads, plain)


def _flat_table(profile: Profile, found: flat.Flat) -> Table:
    absent = np.full(len(found.message), np.nan)
    return Table(
        rows=found.message,
        clock=tuple(found.columns.get(name, absent) for name in clock_fields(profile)),
        device=None,
        channels=(found.columns.get(channel.field, absent) for channel in profile.channels),
        rejects=[],
    )


def _of_rows(records: Records, rows: NDArray[np.int64]) -> Records:
    """Return records of some messages with the rows that these have in their batch."""
    rejects = [replace(reject, message=int(rows[reject.message])) for reject in records.rejects]
    return replace(records, message=rows[records.message], rejects=rejects)
