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
    """One series with what a detector says of each record.

    Attributes:
        time_us: [N] int64, increasing.
        score: [N] float, how unusual; NaN where nothing was said.
        windows: of anomalies, first and last time, both inclusive, in order and apart.
    """

    time_us: NDArray[np.int64]
    score: NDArray[np.floating | np.bool_]
    windows: Sequence[tuple[int, int]]


def probation(records: int) -> int:
    """Return how many records at a series' begin are not scored."""
    return int(PROBATION_SHARE * min(records, PROBATION_OF))


def score(corpus: Sequence[Series], threshold: float = 1.0, costs: Costs = STANDARD) -> float:
    """Return the normalised score: 0 for no alarm at all, 100 for each window found at its first record and no more.

    Args:
        corpus: all series.
        threshold: score from which a record is an alarm.
        costs: what counts how much.
    """
    return _normalised(sum(raw_score(series, threshold, costs) for series in corpus), corpus, costs)


def best(corpus: Sequence[Series], costs: Costs = STANDARD) -> tuple[float, float]:
    """Return the threshold above 0 that scores best over all series, and that score.

    The benchmark gives every detector that it publishes one such threshold: the best that there is in hindsight.
    """
    parts = [_increments(series, costs) for series in corpus]
    scores, gains = (np.concatenate([part[number] for part in parts]) for number in (0, 1))
    order = np.argsort(-scores, kind="stable")
    scores, totals = scores[order], np.cumsum(gains[order])
    last = np.append(scores[1:] != scores[:-1], True) & (scores > 0)  # all records of one score are alarms together
    if not last.any():
        return float("inf"), score(corpus, float("inf"), costs)
    chosen = np.flatnonzero(last)[np.argmax(totals[last])]
    threshold = float(scores[chosen])
    return threshold, score(corpus, threshold, costs)


def raw_score(series: Series, threshold: float = 1.0, costs: Costs = STANDARD) -> float:
    """Return the score of one series before it is normalised."""
    scores, gains, nothing = _increments(series, costs)
    return nothing + float(gains[scores >= threshold].sum())


def _normalised(raw: float, corpus: Sequence[Series], costs: Costs) -> float:
    windows = sum(len(series.windows) for series in corpus)
    nothing, perfect = -costs.miss * windows, costs.hit * windows
    return 100 * (raw - nothing) / (perfect - nothing)


def _increments(series: Series, costs: Costs) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return what each scored record adds once it is an alarm, those of higher score being alarms before it.

    Returns:
        [K] scores, [K] gains, and the score without any alarm.
    """
    spans = [
        (int(np.searchsorted(series.time_us, first)), int(np.searchsorted(series.time_us, last, "right")) - 1)
        for first, last in series.windows
    ]
    begin, said = probation(len(series.time_us)), np.asarray(series.score, dtype=np.float64)
    records = np.arange(begin, len(said))[~np.isnan(said[begin:])]
    outside, scores, gains, nothing = np.ones(len(records), dtype=bool), [], [], 0.0
    for first, last in spans:
        within = (records >= first) & (records <= last)
        outside &= ~within
        mine = records[within][np.argsort(-said[records[within]], kind="stable")]
        reached = np.maximum.accumulate(costs.hit * _earliness(mine, first, last)) if len(mine) else np.zeros(0)
        scores.append(said[mine])
        gains.append(np.diff(reached, prepend=-costs.miss))
        nothing -= costs.miss if last >= begin else 0.0
    late = -costs.false_alarm * _lateness(records[outside], spans)
    return np.concatenate([*scores, said[records[outside]]]), np.concatenate([*gains, late]), nothing


def _earliness(alarms: NDArray[np.int64], first: int, last: int) -> NDArray[np.float64]:
    """1 at a window's first record, falling to 0 behind its last."""
    return _sigmoid(-(last - alarms + 1) / (last - first + 1)) / _sigmoid(np.array(-1.0))


def _lateness(alarms: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Near 0 right behind a window, rising to 1 far behind it, and 1 before any window."""
    late = np.ones(len(alarms))
    for first, last in spans:
        distance = (alarms - last) / max(last - first, 1)
        late = np.where(alarms <= last, late, np.where(distance > _FURTHEST, 1.0, -_sigmoid(distance)))
    return late


def _sigmoid(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """The published scaled sigmoid: positions from -1 (begin of a window) over 0 (its end) to more (behind it)."""
    return 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, 100.0))) - 1.0
