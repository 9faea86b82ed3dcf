"""JSON payloads: an object a record, or an array of them, flat or nested; a field is a path with dots."""

from functools import lru_cache
from typing import Final

from fieldloop.domain.payloads import fields
from fieldloop.domain.payloads.records import Records, Table, clock_fields, to_records
from fieldloop.domain.profile import Channel, Profile
from fieldloop.domain.readings import Messages

PROFILES: Final = 64  # whose layouts are remembered


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; one bad message or field costs only itself."""
    clock, layout = clock_fields(profile), _layout(profile)
    found = layout.find(messages)
    table = Table(
        rows=found.rows,
        clock=tuple(layout.column(found, name) for name in clock),
        device=None if profile.device_field is None else layout.column(found, profile.device_field),
        channels=(layout.column(found, channel.field) for channel in profile.channels),
        rejects=found.rejects,
    )
    return to_records(profile, messages, table)


def clock_kinds(profile: Profile) -> dict[str, object]:
    """Return the fields of the clock and what each must be."""
    kind = {"iso": fields.TEXT, "parts": fields.ANY}.get(profile.clock.kind, fields.NUMBER)
    return dict.fromkeys(clock_fields(profile), kind)


@lru_cache(maxsize=PROFILES)
def _layout(profile: Profile) -> fields.Fields:
    """Return the layout of a profile's records; to make one costs more than to decode a handful of messages."""
    kinds = {channel.field: _kind(channel) for channel in profile.channels}
    kinds |= clock_kinds(profile)
    if profile.device_field is not None:
        kinds[profile.device_field] = fields.TEXT
    return fields.Fields(kinds, profile.ignore, {channel.field: channel.metric for channel in profile.channels})


def _kind(channel: Channel) -> object:
    texts = channel.texts or any(isinstance(code, str) for code in channel.missing)
    return fields.ANY if texts else fields.NUMBER
