"""The grain of a channel's values: to how many decimals a device writes, and what a change of unit leaves of it.

A sensor resolves so much, and firmware converts what it has read: knots made of hundredths of m/s leave out every other
hundredth, whatever the weather does. Each reading says a little of it. Fewer or more decimals alone say nothing for a
change: real feeds round otherwise from one season to the next. Final digits that no multiple of ten has speak against
one. What firmware converts before it rounds shows no grain and is found by its levels alone.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.contract.history import Floats, Ints
from fieldloop.domain.contract.promise import Change, Promise

FINEST: Final = 6  # decimals; a device that needs more has no grain
ENOUGH: Final = 200.0  # readings after which a device's grain is known

_SHARE: Final = 0.99  # of a device's readings that its grain holds
_FULL: Final = 4096.0  # readings of which the shares are the mean, about
_RARE: Final = 0.02  # the least share of readings that fit a change by chance: one tells 4 at most
_AMISS: Final = 0.02  # share of a changed device's readings that do not fit
_FLOAT32: Final = 2e-7  # relative error of a value that was sent as float32


@dataclass
class GrainHistory:
    """What is known of the grain of a channel, a row a device.

    Attributes:
        decimals: [G, 8] readings by the decimals that they need; the last for more than `FINEST`.
        told: [G] readings after the grain was known.
        fits: [G, C] share of those that fit each change though there was none.
    """

    decimals: Floats
    told: Floats
    fits: Floats

    @classmethod
    def empty(cls, devices: int, changes: int) -> "GrainHistory":
        """Return devices of which nothing is known."""
        return cls(np.zeros((devices, FINEST + 2)), np.zeros(devices), np.zeros((devices, changes)))

    def extend(self, devices: int) -> None:
        """Make room for so many devices in all."""
        more = GrainHistory.empty(devices - len(self.decimals), self.fits.shape[1])
        for each in fields(self):
            setattr(self, each.name, np.concatenate([getattr(self, each.name), getattr(more, each.name)]))

    def forget(self, owner: int) -> None:
        """Learn a device anew."""
        for each in fields(self):
            getattr(self, each.name)[owner] = 0.0


class GrainWatch:
    """The grain of one channel of all devices of a profile.

    Attributes:
        history: a row an owner.
    """

    def __init__(self, promise: Promise) -> None:
        self.history = GrainHistory.empty(0, len(promise.changes))
        self._promise = promise

    def look(self, owner: Ints, value: Floats, told: NDArray[np.bool_]) -> "Grains":
        """Look at readings.

        Args:
            owner: [N] int64.
            value: [N] float64, canonical unit.
            told: [N] whether each tells anything: one that repeats the reading before it does not.
        """
        return Grains(self.history, self._promise, owner, value, told)


class Grains:
    """The grain of some readings ([N]), as far as it says something of each change."""

    def __init__(
        self, history: GrainHistory, promise: Promise, owner: Ints, value: Floats, told: NDArray[np.bool_]
    ) -> None:
        self._history, self._promise = history, promise
        sent = (value - promise.offset) / promise.scale
        known, place = np.unique(owner, return_inverse=True)
        counts = history.decimals[known]
        total = counts.sum(axis=1)
        digits = np.argmax(np.cumsum(counts, axis=1) >= _SHARE * total[:, None], axis=1)
        self._decimals = decimals(sent)
        self._rows = np.flatnonzero(told & (sent != 0))
        self._owner = owner[self._rows]
        self._sent = sent[self._rows]
        self._digits = digits[place][self._rows]
        self._grain = 10.0**-self._digits
        self._learnt = total[place][self._rows] >= ENOUGH
        self._known = self._learnt & (history.told[self._owner] >= ENOUGH) & (self._digits <= FINEST)
        self._size = len(owner)

    def of(self, number: int, change: Change) -> Floats:
        """Return what each reading says for a change, as a logarithm of two likelihoods ([N] float64)."""
        said = np.zeros(self._size)
        if change.scale < 1:
            return said
        fits = self._fits(change)
        share = np.clip(self._history.fits[self._owner, number], _RARE, 1.0)
        amiss = np.minimum(np.log(_AMISS / np.maximum(1.0 - share, 1e-9)), 0.0)
        told = 0.0 if _is_power_of_ten(change.scale) else -np.log(share)
        said[self._rows] = np.where(self._known, np.where(fits, told, amiss), 0.0)
        return said

    def learn(self, kept: NDArray[np.bool_]) -> None:
        """Add some of the readings ([N] bool) to what is known of their devices."""
        known, chosen = self._history, kept[self._rows]
        which, place = np.unique(self._owner[chosen], return_inverse=True)
        if not len(which):
            return
        places = FINEST + 2
        counts = np.bincount(place * places + self._decimals[self._rows][chosen], minlength=len(which) * places)
        known.decimals[which] += counts.reshape(-1, places)
        known.decimals[which[known.decimals[which].sum(axis=1) > _FULL]] *= 0.5
        told = self._learnt[chosen]
        number = np.bincount(place, weights=told)
        known.told[which] = np.minimum(known.told[which] + number, _FULL)
        weight = number / np.maximum(known.told[which], 1.0)
        for change, each in enumerate(self._promise.changes):
            fit = np.bincount(place, weights=told & self._fits(each)[chosen]) / np.maximum(number, 1.0)
            known.fits[which, change] += weight * (fit - known.fits[which, change])

    def _fits(self, change: Change) -> NDArray[np.bool_]:
        """Say which readings look like what a change makes of values with the device's grain."""
        promise = self._promise
        scale = change.scale
        offset = (change.scale * promise.offset + change.offset - promise.offset) / promise.scale
        true = np.rint((self._sent - offset) / (scale * self._grain)) * self._grain
        apart = np.abs(scale * true + offset - self._sent)
        return np.asarray(apart <= 0.5 * self._grain * 1.001 + _FLOAT32 * np.abs(self._sent))


def _is_power_of_ten(scale: float) -> bool:
    power = np.log10(scale)
    return bool(abs(power - np.rint(power)) < 1e-6 and power > 0.5)


def decimals(value: Floats) -> Ints:
    """Return how many decimals each value needs ([N] float64 → [N] int64), `FINEST` + 1 where it is more."""
    needed = np.full(len(value), FINEST + 1)
    size = np.abs(value)
    for places in range(FINEST, -1, -1):
        scaled = size * 10.0**places
        needed[np.abs(scaled - np.rint(scaled)) <= 1e-6 + _FLOAT32 * scaled] = places
    return needed
