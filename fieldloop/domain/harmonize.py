"""Messages to harmonized readings: decode, canonical units, physical range, no time from the future.

The one path that acquisition and the agent both take, so that training and serving see the same readings.
"""

from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.payloads import formats
from fieldloop.domain.payloads.records import Records, Table, to_records
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Packed, Readings, Reason, Reject

PROFILES = 64  # whose rules are remembered
MAX_PAYLOAD_BYTES = 1 << 20  # a record has some hundred bytes: more than 1 MiB is a device gone wrong


def harmonize(profile: Profile, messages: Messages) -> tuple[Readings, list[Reject]]:
    """Return the readings of messages from devices of one profile, and everything that was refused.

    Args:
        profile: the devices' compiled profile.
        messages: [M] messages in order of arrival.

    Returns:
        Readings in order of arrival, canonical units; rejects name the message row, the reason and the detail.
    """
    small, too_large = _by_size(messages)
    records = formats.decode(profile, messages if small is None else messages.take(small))
    rejects = records.rejects
    if small is not None:
        rejects = too_large + [reject.at(int(small[reject.message])) for reject in rejects]
        records = replace(records, message=small[records.message])
    readings, refused = _accept(profile, messages.arrival_us, records)
    return readings, rejects + refused


def harmonize_table(profile: Profile, messages: Messages, table: Table) -> tuple[Readings, list[Reject]]:
    """Return the readings of records that came in columns, as files and databases have them, and what was refused.

    Args:
        profile: the devices' compiled profile.
        messages: [M] whose records they are and when they came; payloads are not read.
        table: the records, its rows are those of the messages.
    """
    records = to_records(profile, messages, table)
    readings, refused = _accept(profile, messages.arrival_us, records)
    return readings, records.rejects + refused


def _accept(profile: Profile, arrival_us: NDArray[np.int64], records: Records) -> tuple[Readings, list[Reject]]:
    """Return the records' values in canonical units that can be true, and the others refused."""
    row = records.message
    latest_us = arrival_us[row] + profile.future_tolerance_us
    future = records.event_us > latest_us
    rejects = [_from_future(int(row[i]), int(records.event_us[i]), int(latest_us[i])) for i in np.flatnonzero(future)]

    scale, offset, lowest, highest = _rules(profile)
    values = records.values * scale + offset
    present = ~np.isnan(values) & ~future[:, None]
    outside = present & ((values < lowest) | (values > highest))
    rejects += [
        _out_of_range(profile, int(row[i]), int(c), float(values[i, c]), int(records.event_us[i]))
        for i, c in np.argwhere(outside)
    ]

    good = present & ~outside
    if good.all():
        channels = values.shape[1]
        metrics = np.tile(np.arange(channels, dtype=np.int16), len(row))
        return Readings(_each(row, channels), metrics, _each(records.event_us, channels), values.ravel()), rejects
    record, metric = np.nonzero(good)
    readings = Readings(row[record], metric.astype(np.int16), records.event_us[record], values[record, metric])
    return readings, rejects


def _each(column: NDArray[np.int64], channels: int) -> NDArray[np.int64]:
    """Repeat what belongs to each record for each of its channels."""
    return column if channels == 1 else np.repeat(column, channels)


@lru_cache(maxsize=PROFILES)
def _rules(profile: Profile) -> NDArray[np.float64]:
    """Return scale, offset, least and largest value of each channel, [4, C]; at the edge, making them costs as much."""
    return np.array([(each.scale, each.offset, each.minimum, each.maximum) for each in profile.channels]).T


def _by_size(messages: Messages) -> tuple[NDArray[np.int64] | None, list[Reject]]:
    """Return the rows of messages that are not too large, None where all are, and the others refused."""
    payloads = messages.payloads
    if not isinstance(payloads, Packed) and max(map(len, payloads), default=0) <= MAX_PAYLOAD_BYTES:
        return None, []
    sizes = np.diff(Packed.of(payloads).offsets)
    rejects = [
        Reject(int(row), None, Reason.TOO_LARGE, f"expected at most {MAX_PAYLOAD_BYTES:,} bytes, got {sizes[row]:,}")
        for row in np.flatnonzero(sizes > MAX_PAYLOAD_BYTES)
    ]
    return np.flatnonzero(sizes <= MAX_PAYLOAD_BYTES), rejects


def _from_future(row: int, event_us: int, latest_us: int) -> Reject:
    return Reject(
        row, None, Reason.FUTURE, f"expected at latest {_iso(latest_us)}, got {_iso(event_us)}", event_us=event_us
    )


def _out_of_range(profile: Profile, row: int, column: int, value: float, event_us: int) -> Reject:
    channel = profile.channels[column]
    allowed = f"{channel.minimum:g} to {channel.maximum:g} {channel.unit}"
    return Reject(row, channel.metric, Reason.OUT_OF_RANGE, f"expected {allowed}, got {value:g}", value, event_us)


def _iso(us: int) -> str:
    try:
        return datetime.fromtimestamp(us / 1e6, tz=UTC).isoformat()
    except (OverflowError, ValueError):
        return f"{us} µs after 1970"
