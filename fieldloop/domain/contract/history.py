"""What each device has sent of one metric, as counts of bounded size, and how usual a value or a step is by them.

Steps are the differences of neighbouring readings. Levels and steps are counted by octaves of their magnitude, so that
no bin width has to be chosen for a metric. Levels have a location and spread beside, both clipped against outliers.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OCTAVES: Final = 64  # from 2^-20 to 2^43; the first one also holds zero
FULL: Final = 8192.0  # counts of one history; halved beyond, so that the newest weigh most
BLOCK: Final = 12.0  # readings that weather makes alike: a history of n readings tells of about n / 12 situations
LOCATION_READINGS: Final = 4000.0  # of which location and spread are the mean, about
CLIP_SPREADS: Final = 5.0  # how far from the location a reading may pull
SETTLED: Final = 50  # readings before anything is clipped

_LOWEST: Final = 107  # of a float32's biased exponents: that of 2^-20
_PRIOR: Final = 0.05  # count of an octave in which nothing was seen
_RESOLUTION: Final = 0.01  # share of the steps that are as small as the sensor resolves
_EDGE: Final = 2.0 ** (np.arange(OCTAVES + 1) - 20.0)


def run_starts(column: Ints) -> Ints:
    """Return where runs of equal entries begin ([N] int64 → [R] int64)."""
    turns = np.ones(len(column), dtype=np.bool_)
    np.not_equal(column[1:], column[:-1], out=turns[1:])
    return np.flatnonzero(turns)


def octave(values: Floats) -> Ints:
    """Return the octave of each magnitude ([N] float64 → [N] int64)."""
    exponent = (np.abs(values).astype(np.float32).view(np.int32) >> 23) & 255
    return np.asarray(np.clip(exponent - _LOWEST, 0, OCTAVES - 1), dtype=np.int64)


@dataclass
class History:
    """Counts of one metric, a row a device.

    Attributes:
        steps: [G, OCTAVES] float64, steps by their octave.
        levels: [G, OCTAVES] float64, values by their octave.
        count: [G] readings learnt.
        location: [G] where values lie.
        spread: [G] their mean distance from it.
        last: [G] the last value; NaN where there is none.
        last_us: [G] int64, its event time.
    """

    steps: Floats
    levels: Floats
    count: Floats
    location: Floats
    spread: Floats
    last: Floats
    last_us: Ints

    @classmethod
    def empty(cls, devices: int) -> "History":
        """Return the history of devices that have sent nothing."""
        return cls(
            np.zeros((devices, OCTAVES)),
            np.zeros((devices, OCTAVES)),
            np.zeros(devices),
            np.zeros(devices),
            np.zeros(devices),
            np.full(devices, np.nan),
            np.zeros(devices, dtype=np.int64),
        )

    def take(self, rows: Ints) -> "History":
        """Return the history of some devices."""
        return History(*(getattr(self, each.name)[rows] for each in fields(self)))

    def put(self, rows: Ints, history: "History") -> None:
        """Replace the history of some devices."""
        for each in fields(self):
            getattr(self, each.name)[rows] = getattr(history, each.name)

    def extend(self, devices: int) -> None:
        """Make room for so many devices in all."""
        more = History.empty(devices - len(self.count))
        for each in fields(self):
            setattr(self, each.name, np.concatenate([getattr(self, each.name), getattr(more, each.name)]))

    def learn(self, row: Ints, value: Floats, step: Floats, near: NDArray[np.bool_]) -> None:
        """Add readings to the counts.

        Args:
            row: [N] int64, whose they are; equal ones together.
            value: [N] float64.
            step: [N] float64, difference from the reading before.
            near: [N] whether that reading was about one cadence ago.
        """
        if not len(row):
            return
        size = len(self.count) * OCTAVES
        self.steps += np.bincount(row[near] * OCTAVES + octave(step[near]), minlength=size).reshape(-1, OCTAVES)
        self.levels += np.bincount(row * OCTAVES + octave(value), minlength=size).reshape(-1, OCTAVES)
        for counts in (self.steps, self.levels):
            counts[counts.sum(axis=1) > FULL] *= 0.5
        self._locate(row, value)

    def _locate(self, row: Ints, value: Floats) -> None:
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        which, number = row[starts], np.diff(np.append(starts, len(row)))
        new = self.count[which] == 0
        self.location[which[new]] = (np.add.reduceat(value, starts) / number)[new]
        limit = np.where(self.count > SETTLED, CLIP_SPREADS * self.spread + 1e-9, np.inf)[row]
        apart = np.clip(value - self.location[row], -limit, limit)
        weight = number / np.minimum(self.count[which] + number, LOCATION_READINGS)
        weight = np.minimum(weight, 1.0)
        self.location[which] += weight * np.add.reduceat(apart, starts) / number
        distance = np.add.reduceat(np.abs(apart), starts) / number
        self.spread[which] += np.where(new, 1.0, weight) * (distance - self.spread[which])
        self.count[which] += number


class Usual:
    """How usual levels and steps are by a history as it is now; all answers are logarithms."""

    def __init__(self, history: History) -> None:
        self._location = history.location
        self._spread = np.maximum(history.spread, 1e-9)
        floor = np.minimum(BLOCK / np.maximum(history.count, 1.0), 1.0)
        self._rarest = np.log(floor)
        self._density = _densities(history.steps)
        self._step_tail = _tails(history.steps, floor)
        self._level_tail = _tails(history.levels, floor)

    def step_density(self, row: Ints, step: Floats, value: Floats, nearness: Floats) -> Floats:
        """Return the density of a step; after a gap that of the value in all the history, the more the longer it was.

        Args:
            row: [N] int64.
            step: [N] float64, difference from the reading before.
            value: [N] float64, where it leads.
            nearness: [N] float64, 1 for a reading right before, near 0 for one long ago.
        """
        density = self._density[row, octave(step)]
        far = np.flatnonzero(nearness < 1)
        if len(far):
            which = row[far]
            apart = (value[far] - self._location[which]) / self._spread[which]
            anywhere = -np.log(np.pi * self._spread[which] * (1 + apart * apart))
            share = nearness[far]
            density[far] = np.logaddexp(np.log(share) + density[far], np.log1p(-share) + anywhere)
        return density

    def step_tail(self, row: Ints, step: Floats) -> Floats:
        """Return how rare steps as small, or as large, as these are ([N] float64, at most 0)."""
        return self._step_tail[row, octave(step)]

    def level_tail(self, row: Ints, value: Floats) -> Floats:
        """Return how rare values as small, as large, or as far from the usual as these are ([N] float64, at most 0)."""
        apart = (value - self._location[row]) / (2 * self._spread[row])
        return np.asarray(
            np.minimum(self._level_tail[row, octave(value)], np.maximum(-np.log1p(apart * apart), self._rarest[row]))
        )


def _densities(counts: Floats) -> Floats:
    """Return the log density of a step in each octave; those below the sensor's resolution share one."""
    moved = counts.copy()
    moved[:, 0] = 0
    total = np.cumsum(moved, axis=1)
    finest = np.maximum(np.argmax(total > _RESOLUTION * total[:, -1:], axis=1), 1)
    share = _smoothed(counts) + _PRIOR
    share /= share.sum(axis=1, keepdims=True)
    fine = np.arange(OCTAVES) <= finest[:, None]
    below = np.log((share * fine).sum(axis=1) / (2 * _EDGE[finest + 1]))
    return np.asarray(np.where(fine, below[:, None], np.log(share) - np.log(2 * _EDGE[:OCTAVES])))


def _smoothed(counts: Floats) -> Floats:
    smoothed = 0.8 * counts
    smoothed[:, 1:] += 0.1 * counts[:, :-1]
    smoothed[:, :-1] += 0.1 * counts[:, 1:]
    return smoothed


def _tails(counts: Floats, floor: Floats) -> Floats:
    """Return the log of the rarer tail that begins in each octave, never rarer than the history can tell.

    Zero tells nothing, for it is zero in every unit; the first octave, where it is counted, is left out.
    """
    counts = counts.copy()
    counts[:, 0] = 0
    total = counts.sum(axis=1, keepdims=True) + 1e-9
    below = np.cumsum(counts, axis=1) / total
    above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1] / total
    tails = np.log(np.clip(2 * np.minimum(below, above), floor[:, None], 1.0))
    tails[:, 0] = 0.0
    return np.asarray(tails)
