"""A moment from which on a device's values look changed, and what it has come to."""

from dataclasses import dataclass
from typing import Final

GRAIN: Final = (-10.0, 20.0)  # bounds of what the grain says beside the other witnesses


@dataclass(frozen=True)
class Verdict:
    """What one metric says of a device.

    Attributes:
        owner: the device.
        since: stream sequence of the first message that shows it.
        change: index into the promise's changes.
        certain: else the messages are to be held.
        strength: by how much it exceeds what was asked; the strongest change of an owner is told.
        before: the last value before it, and its event time in microseconds.
    """

    owner: int
    since: int
    change: int
    certain: bool
    strength: float
    before: tuple[float, int]


@dataclass
class Open:
    """An onset that is not settled yet: how striking it was, what it followed, and the sums over the readings since."""

    change: int
    onset: float
    since: int
    before: tuple[float, int]
    readings: int = 0
    steps: float = 0.0
    levels: float = 0.0
    grain: float = 0.0

    def values(self, weight: float) -> float:
        """Return what onset, steps and levels come to."""
        means = self.steps / max(self.readings - 1, 1) + self.levels / max(self.readings, 1)
        return self.onset + weight * means

    def total(self, weight: float) -> float:
        """Return what all witnesses come to."""
        return self.values(weight) + min(max(self.grain, GRAIN[0]), GRAIN[1])
