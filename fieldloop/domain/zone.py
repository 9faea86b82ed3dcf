"""Local times of a zone to UTC, from the zone's compiled changes.

A local time names one moment, but for two hours a year. One that spring skips is read by the offset before the
change, as a clock that was not put forward shows it. One that autumn repeats names two moments, and is settled for
each device in order of arrival:

1. Where its second moment lies after its arrival, it is the first; so are the message's repeated times before it.
2. Where the device's times step back by half of the repeated hour or more (or, for a slow device, by the hour less its
   cadence), the second pass begins, for good.
3. Where they have not, it is the second if it arrived within an hour of that moment (live), and else the first.

So live readings are settled by arrival alone, a backlog by its order. A message is looked at as a whole, and of the
messages before it only what they left behind (`carry`): the outcome is the same however messages are batched.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.carry import Carry, Repeated
from fieldloop.domain.profile import Zone

_US_PER_S = 1_000_000


def local_to_utc_us(
    zone: Zone,
    local_us: NDArray[np.int64],
    devices: Sequence[str],
    arrival_us: NDArray[np.int64],
    cadence_us: int,
    sequence: NDArray[np.int64],
    carry: Carry,
) -> NDArray[np.int64]:
    """Return UTC microseconds ([N] int64) of local times.

    Args:
        zone: the compiled zone.
        local_us: [N] int64, microseconds since 1970 by the zone's own clock.
        devices: [N] whose clocks they are.
        arrival_us: [N] int64, when they arrived, UTC; the rows are in order of arrival.
        cadence_us: regular distance of two times of one device.
        sequence: [N] int64, place of their messages in the stream.
        carry: where the clocks stood before; is brought up to date.
    """
    first, second, change = _moments(zone, local_us)
    utc = first.copy()
    repeated = np.flatnonzero(first < second)
    for device, rows in _by_device(repeated, devices).items():
        carried = carry.before(device, int(sequence[rows[0]]))
        stands = carried.repeated
        for part in _messages(rows, sequence, change):
            change_s = zone.changes_s[change[part[0]]]
            stands = stands if stands is not None and stands.change_s == change_s else None
            passed, stepped = _second_pass(
                local_us[part], first[part], second[part], arrival_us[part], cadence_us, stands
            )
            utc[part[passed]] = second[part[passed]]
            stands = Repeated(change_s, int(local_us[part[-1]]), stepped)
        carry.learn(device, int(sequence[rows[-1]]), msgspec.structs.replace(carried, repeated=stands))
    return utc


def _moments(zone: Zone, local_us: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return both moments of each local time, which are mostly one, and the number of the change after the first."""
    changes = np.array(zone.changes_s, dtype=np.int64) * _US_PER_S
    offsets = np.array(zone.offsets_s, dtype=np.int64) * _US_PER_S
    before, after = offsets[:-1], offsets[1:]
    earlier = np.searchsorted(changes + np.maximum(before, after), local_us, side="right")
    later = np.searchsorted(changes + np.minimum(before, after), local_us, side="right")
    return local_us - offsets[earlier], local_us - offsets[later], earlier


def _by_device(rows: NDArray[np.int64], devices: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
    """Return the rows of each device."""
    groups: dict[str, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(devices[row], []).append(row)
    return {device: np.array(group, dtype=np.int64) for device, group in groups.items()}


def _messages(
    rows: NDArray[np.int64], sequence: NDArray[np.int64], change: NDArray[np.int64]
) -> Sequence[NDArray[np.int64]]:
    """Return a device's rows message by message, and within one change by change."""
    turns = (np.diff(sequence[rows]) != 0) | (np.diff(change[rows]) != 0)
    return np.split(rows, np.flatnonzero(turns) + 1)


def _second_pass(
    local_us: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    arrival_us: NDArray[np.int64],
    cadence_us: int,
    before: Repeated | None,
) -> tuple[NDArray[np.bool_], bool]:
    """Say of a message's times within one repeated hour which are of its second pass, and whether its clock stepped."""
    repeat_us = int(second[0] - first[0])
    number = np.arange(len(local_us))
    not_yet = np.flatnonzero(second > arrival_us)
    begin = int(not_yet[-1]) + 1 if len(not_yet) else 0
    step_back = min(repeat_us // 2, max(repeat_us - cadence_us, 0))
    if before is not None and before.second:
        return np.asarray(number >= begin), True
    start = local_us[0] - 1 if before is None else before.local_us
    back = np.flatnonzero((np.diff(local_us, prepend=start) <= -step_back) & (number >= begin))
    if len(back):
        return np.asarray(number >= back[0]), True
    return np.asarray((number >= begin) & (arrival_us - second <= repeat_us)), False
