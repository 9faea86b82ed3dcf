"""How the Numenta Anomaly Benchmark scores detections on a stream, as published.

Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: NAB" (2015), with what the benchmark's own
code settles: an early detection within a labelled window counts most, each window counts once, a detection
outside costs the more the further behind the last window it is, and the first 15 % of a series (at most 750 records)
are for learning and are not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PROBATION_SHARE: Final = 0.15
PROBATION_OF: Final = 5_000  # records of a series beyond which its probation does not grow
_FURTHEST: Final = 3.0  # window lengths behind a window from which a false alarm costs all


@dataclass(frozen=True)
class Costs:
    """What counts how much: an application profile.

    Attributes:
        hit: a window found.
        false_alarm: an alarm outside.
        miss: a window that was not found.
    """

    hit: float = 1.0
    false_alarm: float = 0.11
    miss: float = 1.0


STANDARD: Final = Costs()


@dataclass(frozen=True)
class Series:
    """One series with its detections.

    Attributes:
        time_us: [N] int64, increasing.
        alarm: [N] bool.
        windows: of anomalies, first and last time, both inclusive, in order and apart.
    """

    time_us: NDArray[np.int64]
    alarm: NDArray[np.bool_]
    windows: Sequence[tuple[int, int]]


def probation(records: int) -> int:
    """Return how many records at a series' begin are not scored."""
    return int(PROBATION_SHARE * min(records, PROBATION_OF))


def score(corpus: Sequence[Series], costs: Costs = STANDARD) -> float:
    """Return the normalised score: 0 for no alarm at all, 100 for each window found at its first record and no more."""
    raw = sum(raw_score(series, costs) for series in corpus)
    windows = sum(len(series.windows) for series in corpus)
    nothing, perfect = -costs.miss * windows, costs.hit * windows
    return 100 * (raw - nothing) / (perfect - nothing)


def raw_score(series: Series, costs: Costs = STANDARD) -> float:
    """Return the score of one series before it is normalised."""
    spans = [
        (int(np.searchsorted(series.time_us, first)), int(np.searchsorted(series.time_us, last, "right")) - 1)
        for first, last in series.windows
    ]
    begin = probation(len(series.time_us))
    alarms = np.flatnonzero(series.alarm)
    alarms = alarms[alarms >= begin]
    total = 0.0
    outside = np.ones(len(alarms), dtype=bool)
    for first, last in spans:
        within = (alarms >= first) & (alarms <= last)
        outside &= ~within
        found = alarms[within]
        if len(found):
            total += costs.hit * _earliness(int(found[0]), first, last)
        elif last >= begin:
            total -= costs.miss
    return total - costs.false_alarm * float(sum(_lateness(int(alarm), spans) for alarm in alarms[outside]))


def _earliness(alarm: int, first: int, last: int) -> float:
    """1 at a window's first record, falling to 0 behind its last."""
    length = last - first + 1
    return _sigmoid(-(last - alarm + 1) / length) / _sigmoid(-1.0)


def _lateness(alarm: int, spans: Sequence[tuple[int, int]]) -> float:
    """Near 0 right behind a window, rising to 1 far behind it, and 1 before any window."""
    before = [(first, last) for first, last in spans if last < alarm]
    if not before:
        return 1.0
    first, last = before[-1]
    distance = (alarm - last) / max(last - first, 1)
    return 1.0 if distance >= _FURTHEST else -_sigmoid(distance)


def _sigmoid(position: float) -> float:
    """The published scaled sigmoid: positions from -1 (begin of a window) over 0 (its end) to more (behind it)."""
    return 2.0 / (1.0 + float(np.exp(5.0 * position))) - 1.0
