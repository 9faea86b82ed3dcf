"""Changes of scale, seen in the ratio of a channel's values before and after a moment, against the whole fleet's.

For channels that cannot be negative, such as wind, whose size swings with their level: doubling says more of them than
any difference. A jump is the logarithm of three readings' mean over that of the three before. How large jumps are is
learnt a device; how much larger than that one can be by nature, from the largest jumps of all devices of the profile.
One is a change if it exceeds that by a margin and if a known change explains it: undone, the jump is an ordinary one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.contract.history import Floats, Ints
from fieldloop.domain.contract.points import ENOUGH, Series, runs
from fieldloop.domain.contract.promise import Promise

SIDE: Final = 3  # readings on each side of a jump
LEARNT: Final = 300  # jumps of a device after which it is known how large they usually are
FLEET: Final = 100_000.0  # further jumps, of all devices, before anyone is judged: so rare a jump has been seen
MARGIN: Final = 1.5  # times the largest jump that one device in fifty exceeds, in the devices' own usual ones
AMONG: Final = 0.98  # of the devices: a single one of a large fleet does not raise the bar for all
MOST: Final = 2 * ENOUGH  # readings of a device and batch that are looked at; of more, the last ones
USUAL: Final = 2.5  # of a jump that is an ordinary one, likewise

_FLOOR: Final = 0.1  # of a device's mean, added to all values: near zero, ratios mean nothing
_LEARN: Final = 4_000.0  # jumps of which the averages are the mean, about
_KEPT: Final = 2 * SIDE - 1  # readings that go on into the next batch


@dataclass
class RatioHistory:
    """What is known of the jumps of a channel, a row a device.

    Attributes:
        count: [G] jumps learnt.
        mean: [G] of the values.
        usual: [G] mean size of the jumps, natural logarithms.
        largest: [G] the largest one, in usual ones.
        value: [G, 5] float64, the last readings, NaN where there are none.
        event_us: [G, 5] int64, their event times.
        sequence: [G, 5] int64, stream sequences of their messages.
    """

    count: Floats
    mean: Floats
    usual: Floats
    largest: Floats
    value: Floats
    event_us: Ints
    sequence: Ints

    @classmethod
    def empty(cls, devices: int) -> "RatioHistory":
        """Return devices of which nothing is known."""
        count, mean, usual, largest = (np.zeros(devices) for _ in range(4))
        event_us, sequence = (np.zeros((devices, _KEPT), dtype=np.int64) for _ in range(2))
        return cls(count, mean, usual, largest, np.full((devices, _KEPT), np.nan), event_us, sequence)

    def extend(self, devices: int) -> None:
        """Make room for so many devices in all."""
        more = RatioHistory.empty(devices - len(self.count))
        for each in fields(self):
            setattr(self, each.name, np.concatenate([getattr(self, each.name), getattr(more, each.name)]))

    def forget(self, owner: int) -> None:
        """Learn a device anew."""
        empty = RatioHistory.empty(1)
        for each in fields(self):
            getattr(self, each.name)[owner] = getattr(empty, each.name)[0]


@dataclass(frozen=True)
class Jumped:
    """A device whose values jumped as a change would have them: since which message, by which change, after which."""

    owner: int
    since: int
    change: int
    strength: float
    before: tuple[float, int]  # the value, and its event time in microseconds


class RatioWatch:
    """The jumps of one channel of all devices of a profile.

    Attributes:
        history: a row an owner.
    """

    def __init__(self, promise: Promise, near_us: float) -> None:
        self.history = RatioHistory.empty(0)
        self._scales = [(place, each.scale) for place, each in enumerate(promise.changes) if each.offset == 0]
        self._open = promise.minimum >= 0 and promise.turn is None
        self._near_us = near_us

    def judge(self, series: Series, sequence: Ints, since: Mapping[int, int]) -> list[Jumped]:
        """Judge a batch, then learn from the devices of which it shows nothing.

        Args:
            series: the channel's readings, those outside the physical range too.
            sequence: [M] int64, stream sequence of each message of the batch.
            since: owners that are known to have changed, each with the sequence of the first message that shows it.
        """
        if not self._open:
            return []
        owner, rows = _last(series)
        if not len(rows):
            return []
        line = self._line(owner, series.value[rows], series.event_us[rows], sequence[series.message[rows]])
        jumps = _Jumps(line, self.history, self._near_us)
        found = jumps.found(self._scales)
        jumps.learn(self.history, {each.owner for each in found})
        self._remember(line)
        for changed, first in ({each.owner: each.since for each in found} | dict(since)).items():
            self._remember_before(line, changed, first)
        return found

    def _line(self, owner: Ints, value: Floats, event_us: Ints, sequence: Ints) -> "_Line":
        """Return the readings with the last ones of the batch before, owner by owner."""
        owners = owner[np.flatnonzero(np.diff(owner, prepend=-1))]
        known = self.history
        joined = np.concatenate([np.repeat(owners, _KEPT), owner])
        order = np.argsort(joined, kind="stable")
        return _Line(
            joined[order],
            np.concatenate([known.value[owners].ravel(), value])[order],
            np.concatenate([known.event_us[owners].ravel(), event_us])[order],
            np.concatenate([known.sequence[owners].ravel(), sequence])[order],
        )

    def _remember(self, line: "_Line") -> None:
        """Keep the last readings of each owner."""
        ends = np.append(np.flatnonzero(np.diff(line.owner)), len(line.owner) - 1)
        last = ends[:, None] - np.arange(_KEPT)[::-1]
        owners = line.owner[ends]
        known = self.history
        known.value[owners], known.event_us[owners] = line.value[last], line.event_us[last]
        known.sequence[owners] = line.sequence[last]

    def _remember_before(self, line: "_Line", owner: int, since: int) -> None:
        """Keep an owner's last readings before a message alone: what came since is judged anew once it is mended."""
        rows = np.flatnonzero((line.owner == owner) & (line.sequence < since))[-_KEPT:]
        known, free = self.history, _KEPT - len(rows)
        known.value[owner, :free] = np.nan
        known.value[owner, free:], known.event_us[owner, free:] = line.value[rows], line.event_us[rows]
        known.sequence[owner, free:] = line.sequence[rows]


def _last(series: Series) -> tuple[Ints, Ints]:
    """Return the owners and rows of each owner's last readings, as many as `MOST` and its message's rest."""
    starts, lengths, owner = runs(series)
    if not len(starts):
        return owner, starts
    until = np.cumsum(lengths)
    ends = np.append(np.flatnonzero(np.diff(owner)), len(owner) - 1)
    kept = until[ends][np.searchsorted(owner[ends], owner)] - until < MOST
    starts, lengths, owner = starts[kept], lengths[kept], owner[kept]
    before = np.cumsum(lengths) - lengths
    return np.repeat(owner, lengths), np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True)
class _Line:
    """Readings by owner and in order of arrival: [N] each."""

    owner: Ints
    value: Floats
    event_us: Ints
    sequence: Ints


class _Jumps:
    """The jumps at each reading that has three before it and two behind, none of them far apart."""

    def __init__(self, line: _Line, known: RatioHistory, near_us: float) -> None:
        together = (np.diff(line.owner) == 0) & (np.abs(np.diff(line.event_us)) <= near_us)
        whole = np.lib.stride_tricks.sliding_window_view(np.isfinite(line.value), 2 * SIDE).all(axis=1)
        whole &= np.lib.stride_tricks.sliding_window_view(together, 2 * SIDE - 1).all(axis=1)
        first = np.flatnonzero(whole)
        self.at = first + SIDE
        self._line, self._known = line, known
        self.owner = line.owner[first]
        window = line.value[first[:, None] + np.arange(2 * SIDE)]
        mean = np.where(known.count[self.owner] > 0, known.mean[self.owner], window.mean(axis=1))
        self._floor = _FLOOR * np.maximum(mean, 1e-9)
        self._before, self._after = window[:, :SIDE], window[:, SIDE:]
        self.jump = self._logs(self._after) - self._logs(self._before)

    def found(self, scales: list[tuple[int, float]]) -> list[Jumped]:
        """Return the owners of whom a change explains a jump beyond nature: the first, where it is largest."""
        known, owner = self._known, self.owner
        if np.maximum(known.count - LEARNT, 0).sum() < FLEET:
            return []
        settled = known.largest[known.count > LEARNT]
        limit = MARGIN * float(np.quantile(settled, AMONG, method="higher"))
        usual = np.maximum(known.usual[owner], 1e-9)
        beyond = np.flatnonzero((known.count[owner] >= LEARNT) & (np.abs(self.jump) > limit * usual))
        found: dict[int, Jumped] = {}
        for first in beyond.tolist():
            who = int(owner[first])
            beside = first + np.flatnonzero(owner[first : first + SIDE] == who)
            place = int(beside[np.argmax(np.abs(self.jump[beside]))])
            best = min((abs(self._undone(place, scale)) / usual[place], change) for change, scale in scales)
            if best[0] <= USUAL and who not in found:
                strength, at = float(abs(self.jump[place]) / usual[place] / limit), int(self.at[place])
                before = float(self._line.value[at - 1]), int(self._line.event_us[at - 1])
                found[who] = Jumped(who, int(self._line.sequence[at]), best[1], strength, before)
        return list(found.values())

    def learn(self, known: RatioHistory, changed: set[int]) -> None:
        """Add the jumps of devices that show nothing to what is known."""
        kept = np.flatnonzero(~np.isin(self.owner, list(changed)))
        if not len(kept):
            return
        owner, size = self.owner[kept], np.abs(self.jump[kept])
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        which, number = owner[starts], np.diff(np.append(starts, len(owner)))
        weight = number / np.minimum(known.count[which] + number, np.maximum(_LEARN, number))
        for held, new in ((known.mean, self._after[kept].mean(axis=1)), (known.usual, size)):
            held[which] += weight * (np.add.reduceat(new, starts) / number - held[which])
        known.count[which] += number
        settled = known.count[which] >= LEARNT
        largest = np.maximum.reduceat(size, starts) / np.maximum(known.usual[which], 1e-9)
        known.largest[which] = np.where(settled, np.maximum(known.largest[which], largest), known.largest[which])

    def _undone(self, place: int, scale: float) -> float:
        """Return a jump as it would be with a change undone."""
        floor = self._floor[place]
        after = np.log(np.maximum(self._after[place] / scale, 0.0) + floor).mean()
        return float(after - np.log(np.maximum(self._before[place], 0.0) + floor).mean())

    def _logs(self, side: Floats) -> NDArray[np.float64]:
        return np.asarray(np.log(np.maximum(side, 0.0) + self._floor[:, None]).mean(axis=1))
