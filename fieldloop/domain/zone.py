"""Local times of a zone to UTC, from the zone's compiled changes.

A local time names one moment, but for two hours a year. One that spring skips is read by the offset before the
change, as a clock that was not put forward shows it. One that autumn repeats names two moments, and is settled for
each device in order of arrival:

1. Where its second moment lies after its arrival, it is the first; so are the device's repeated times before it.
2. Where the device's times step back by half of the repeated hour or more (or, for a slow device, by the hour less its
   cadence), the second pass begins.
3. Where they do not, it is the second if it arrived within an hour of that moment (live), and else the first.

So live readings are settled by arrival alone, however they are batched; a backlog by its order.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.profile import Zone

_US_PER_S = 1_000_000


def local_to_utc_us(
    zone: Zone, local_us: NDArray[np.int64], devices: Sequence[str], arrival_us: NDArray[np.int64], cadence_us: int
) -> NDArray[np.int64]:
    """Return UTC microseconds ([N] int64) of local times.

    Args:
        zone: the compiled zone.
        local_us: [N] int64, microseconds since 1970 by the zone's own clock.
        devices: [N] whose clocks they are.
        arrival_us: [N] int64, when they arrived, UTC; the rows are in order of arrival.
        cadence_us: regular distance of two times of one device.
    """
    first, second, change = _moments(zone, local_us)
    utc = first.copy()
    repeated = np.flatnonzero(first < second)
    for rows in _groups(repeated, devices, change):
        passed = _second_pass(local_us[rows], first[rows], second[rows], arrival_us[rows], cadence_us)
        utc[rows[passed]] = second[rows[passed]]
    return utc


def _moments(zone: Zone, local_us: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return both moments of each local time, which are mostly one, and the number of the change after the first."""
    changes = np.array(zone.changes_s, dtype=np.int64) * _US_PER_S
    offsets = np.array(zone.offsets_s, dtype=np.int64) * _US_PER_S
    before, after = offsets[:-1], offsets[1:]
    earlier = np.searchsorted(changes + np.maximum(before, after), local_us, side="right")
    later = np.searchsorted(changes + np.minimum(before, after), local_us, side="right")
    return local_us - offsets[earlier], local_us - offsets[later], earlier


def _groups(rows: NDArray[np.int64], devices: Sequence[str], change: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    """Return the rows of each device and change."""
    groups: dict[tuple[str, int], list[int]] = {}
    for row in rows.tolist():
        groups.setdefault((devices[row], int(change[row])), []).append(row)
    return [np.array(group, dtype=np.int64) for group in groups.values()]


def _second_pass(
    local_us: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    arrival_us: NDArray[np.int64],
    cadence_us: int,
) -> NDArray[np.bool_]:
    """Say of one device's times within one repeated hour which are of its second pass ([N] bool)."""
    repeat_us = int(second[0] - first[0])
    number = np.arange(len(local_us))
    not_yet = np.flatnonzero(second > arrival_us)
    begin = int(not_yet[-1]) + 1 if len(not_yet) else 0
    step_back = min(repeat_us // 2, max(repeat_us - cadence_us, 0))
    back = np.flatnonzero((np.diff(local_us) <= -step_back) & (number[1:] >= begin)) + 1
    if len(back):
        return np.asarray(number >= back[0])
    return np.asarray((number >= begin) & (arrival_us - second <= repeat_us))
