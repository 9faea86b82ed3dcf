"""One metric's readings of a batch as points: each with the reading before it, device by device in order of arrival.

Neighbours tell most. Of a device that sends a lot in one batch, evenly chosen points stand for all, so that the watch
costs the same for ten readings a message as for a thousand.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fieldloop.domain.contract.history import Floats, Ints, run_starts

ENOUGH: Final = 144  # points of a device and metric in one batch; of more, about so many are chosen


@dataclass(frozen=True)
class Series:
    """One metric's readings in a batch.

    Attributes:
        owner: [M] int64, whose each message is; -1 for messages that are not looked at.
        message: [N] int64, row of the message, never decreasing.
        value: [N] float64.
        event_us: [N] int64.
    """

    owner: Ints
    message: Ints
    value: Floats
    event_us: Ints

    def of(self, owners: Ints) -> "Series":
        """Return the same, but of some owners alone: nobody else's messages are looked at."""
        return replace(self, owner=np.where(np.isin(self.owner, owners), self.owner, -1))


@dataclass(frozen=True)
class Points:
    """Chosen readings, by owner and then in order of arrival.

    Attributes:
        owner: [P] int64.
        message: [P] int64.
        value: [P] float64.
        event_us: [P] int64.
        before: [P] float64, the value of the reading before it; NaN where there is none.
        before_us: [P] int64, its event time.
        chosen_before: [P] float64, the value of the point before it, which is the same where none was left out.
        chosen_before_us: [P] int64.
    """

    owner: Ints
    message: Ints
    value: Floats
    event_us: Ints
    before: Floats
    before_us: Ints
    chosen_before: Floats
    chosen_before_us: Ints

    def __len__(self) -> int:
        return len(self.owner)

    def starts(self) -> Ints:
        """Return where each owner's points begin."""
        return np.flatnonzero(np.diff(self.owner, prepend=-2))


def choose(series: Series, last: Floats, last_us: Ints, enough: Ints) -> tuple[Points, Ints, Floats, Ints]:
    """Choose points of a batch; return them, and each owner that sent anything with its last value and event time.

    Args:
        series: the batch.
        last: [G] float64, each owner's last value before the batch; NaN where there is none.
        last_us: [G] int64, its event time.
        enough: [G] int64, how many points to choose of each owner, about; twice as many readings are all taken.
    """
    starts, lengths, owner = runs(series)
    ends = starts + lengths - 1
    first = np.diff(owner, prepend=-2) != 0
    before = np.roll(ends, 1)
    groups = np.cumsum(first) - 1
    places, run = _places(starts, lengths, groups, enough[owner[first]])
    value, event_us = series.value[places], series.event_us[places]
    inside = places > starts[run]
    opening = ~inside & first[run]
    previous = np.where(inside, places - 1, before[run])
    who = owner[run]
    before_value = np.where(opening, last[who], series.value[previous])
    before_us = np.where(opening, last_us[who], series.event_us[previous])
    new_owner = np.diff(who, prepend=-2) != 0
    points = Points(
        who,
        series.message[places],
        value,
        event_us,
        before_value,
        before_us,
        np.where(new_owner, before_value, np.roll(value, 1)),
        np.where(new_owner, before_us, np.roll(event_us, 1)),
    )
    closing = np.append(first[1:], True) if len(first) else first
    final = ends[closing]
    return points, owner[closing], series.value[final], series.event_us[final]


def runs(series: Series) -> tuple[Ints, Ints, Ints]:
    """Return where each message's readings begin, how many they are and whose, by owner and then in order."""
    starts = run_starts(series.message)
    lengths = np.diff(np.append(starts, len(series.message)))
    owner = series.owner[series.message[starts]]
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    return starts[order], lengths[order], owner[order]


def _places(starts: Ints, lengths: Ints, groups: Ints, enough: Ints) -> tuple[Ints, Ints]:
    """Return the chosen readings and the run of each: all of an owner's, or evenly chosen ones of some runs."""
    if not len(starts):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    messages = np.bincount(groups)
    readings = np.bincount(groups, weights=lengths)
    few = readings <= 2 * enough
    stride = np.where(few, 1, np.maximum(messages // enough, 1))
    each = np.where(few, np.iinfo(np.int64).max, -(-enough // messages))
    rank = np.arange(len(groups)) - np.flatnonzero(np.diff(groups, prepend=-1))[groups]
    runs = np.flatnonzero(rank % stride[groups] == 0)
    number = np.minimum(lengths[runs], each[groups[runs]])
    run = np.repeat(runs, number)
    turn = np.arange(len(run)) - np.repeat(np.cumsum(number) - number, number)
    return starts[run] + turn * lengths[run] // np.repeat(number, number), run
