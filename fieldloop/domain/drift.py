"""Drift: what targets see and predict, held against what their model was learnt from, by sketches alone.

The distance is Kolmogorov and Smirnov's: the largest gap of two distribution functions, 0 to 1, whatever the unit, with
missing values counted above all others, so that a channel that falls silent drifts too. Two samples of n and m
independent values from one distribution lie further apart than `1.63 * sqrt((n + m) / (n * m))` once in a hundred times
(Smirnov, Annals of Mathematical Statistics 19, 1948), 0.07 at a thousand each. Readings that follow one another are not
independent and a season is not a year, so that limits are a recipe's and stay well above.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from fieldloop.domain.recipe.rules import Drift
from fieldloop.domain.rollout.protocol import Reported, Running
from fieldloop.domain.sketch import Sketch, distance, merge

PREDICTION: Final = "(prediction)"  # no metric can be named so


class Distributions(msgspec.Struct, frozen=True):
    """Sketches of a model's inputs, by metric, and of its predictions.

    Attributes:
        inputs: each channel's values on the grid at the end of a window.
        predictions: in the unit of the release.
    """

    inputs: dict[str, Sketch]
    predictions: Sketch

    def by_channel(self) -> dict[str, Sketch]:
        """Return all of them, the predictions last."""
        return {**self.inputs, PREDICTION: self.predictions}


class Verdict(StrEnum):
    """What the distance of a channel says."""

    STEADY = "steady"
    DRIFTED = "drifted"
    TOO_FEW = "too few values"
    UNJUDGED = "not judged"


@dataclass(frozen=True)
class Finding:
    """One channel, or the predictions.

    Attributes:
        channel: metric, or `PREDICTION`.
        values: how many the targets have seen, missing ones included.
        distance: from the reference, 0 to 1.
        verdict: what that means under the recipe's limit.
    """

    channel: str
    values: int
    distance: float
    verdict: Verdict


@dataclass(frozen=True)
class Seen:
    """What the targets that run one release have seen since they switched to it."""

    running: Running
    targets: int
    distributions: Distributions


def gather(model: str, reports: Iterable[Reported]) -> Seen | None:
    """Merge the sketches of the release of a model that most targets run, of two the newer; None where none runs."""
    mine = [(report.running, report) for report in reports if report.running and report.running.model == model]
    if not mine:
        return None
    targets = Counter(running.release for running, _ in mine)
    chosen, _ = max(mine, key=lambda one: (targets[one[0].release], one[0].version, one[0].release))
    of = [report for running, report in mine if running.release == chosen.release]
    channels = sorted({channel for report in of for channel in report.inputs})
    inputs = {name: merge(report.inputs[name] for report in of if name in report.inputs) for name in channels}
    scores = (r.served.scores for r in of if r.served is not None and r.served.release == chosen.release)
    return Seen(chosen, len(of), Distributions(inputs, merge(scores)))


def hold_against(reference: Distributions, seen: Distributions, rule: Drift) -> tuple[Finding, ...]:
    """Judge every channel of the reference, the predictions last."""
    live = seen.by_channel()
    return tuple(
        _judged(channel, known.with_missing(), live.get(channel, Sketch()).with_missing(), rule)
        for channel, known in reference.by_channel().items()
    )


def drifted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return those that have drifted, the furthest first."""
    return tuple(sorted((f for f in findings if f.verdict is Verdict.DRIFTED), key=lambda f: -f.distance))


def _judged(channel: str, known: Sketch, live: Sketch, rule: Drift) -> Finding:
    gap = distance(known, live)
    if min(known.count, live.count) < rule.least_values:
        return Finding(channel, live.count, gap, Verdict.TOO_FEW)
    if channel in rule.unjudged:
        return Finding(channel, live.count, gap, Verdict.UNJUDGED)
    return Finding(channel, live.count, gap, Verdict.DRIFTED if gap > rule.limit else Verdict.STEADY)
