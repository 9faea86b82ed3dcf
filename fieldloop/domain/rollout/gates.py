"""Gates: what the targets asked so far have shown, held against a plan's limits; each finding in a person's words."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final

import msgspec

from fieldloop.domain.rollout.plan import Limits
from fieldloop.domain.rollout.protocol import Reported, Served
from fieldloop.domain.rollout.standing import Standing, State
from fieldloop.domain.sketch import Sketch, distance, merge

LEAST_BATCHES: Final = 20  # latencies below which nothing is said of their 99th percentile
AGREEING: Final = 0.9  # share of windows that must agree with the shadow
SPREAD: Final = (0.05, 0.95)  # quantiles between which predictions spread
SHOWN_REASONS: Final = 3


class Outcome(StrEnum):
    """What one gate says."""

    GOOD = "good"
    UNJUDGED = "unjudged"
    BREACHED = "breached"


@dataclass(frozen=True)
class Finding:
    """One gate's word and its figures."""

    gate: str
    outcome: Outcome
    text: str


class Evidence(msgspec.Struct, frozen=True):
    """What the targets asked so far have shown, summed up.

    Attributes:
        targets: how many were asked.
        states: how many are in each state.
        reasons: why targets failed or are silent, with counts, most frequent first.
        windows: windows that the release scored.
        errors: windows that it failed on.
        latency: seconds from reading to prediction.
        latency_before: the same of the releases before, on the same targets.
        scores: predictions of the release.
        scores_before: predictions of the releases before, on the same targets, until they were left.
        shadow_scores: predictions of the releases before in shadow, on the release's own windows.
        gaps: shadow minus release, a value a window.
        growth_bytes: by how much each target's agent has grown since it switched.
    """

    targets: int
    states: Counter[State]
    reasons: tuple[tuple[str, int], ...] = ()
    windows: int = 0
    errors: int = 0
    latency: Sketch = Sketch()
    latency_before: Sketch = Sketch()
    scores: Sketch = Sketch()
    scores_before: Sketch = Sketch()
    shadow_scores: Sketch = Sketch()
    gaps: Sketch = Sketch()
    growth_bytes: tuple[int, ...] = ()


def gather(release: str, standings: Sequence[Standing], reports: Iterable[Reported]) -> Evidence:
    """Sum up standings and the reports of those targets that run the release.

    A report's figures count only for the release that they name: what was counted for another one is not taken over.
    """
    running = [r for r in reports if r.running is not None and r.running.release == release]
    served = [r.served for r in running if r.served is not None and r.served.release == release]
    before = [r.before for r in running if r.before is not None and r.before.release != release]
    shadows = [r.shadow for r in running if r.shadow is not None and r.shadow.beside == release]
    troubled = Counter(s.reason for s in standings if s.state in (State.FAILED, State.SILENT))
    return Evidence(
        targets=len(standings),
        states=Counter(standing.state for standing in standings),
        reasons=tuple(troubled.most_common(SHOWN_REASONS)),
        windows=sum(one.windows for one in served),
        errors=sum(one.errors for one in served),
        latency=merge(one.latency for one in served),
        latency_before=merge(one.latency for one in before),
        scores=merge(one.scores for one in served),
        scores_before=merge(one.scores for one in before),
        shadow_scores=merge(one.scores for one in shadows),
        gaps=merge(one.gaps for one in shadows),
        growth_bytes=tuple(_growth(one) for one in served if one.start_bytes),
    )


def judge_gates(evidence: Evidence, limits: Limits) -> tuple[Finding, ...]:
    """Hold the evidence against every limit."""
    return tuple(gate(evidence, limits) for gate in GATES)


def breached(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return those findings that stop a rollout."""
    return tuple(finding for finding in findings if finding.outcome is Outcome.BREACHED)


def answered(states: Counter[State], limits: Limits) -> bool:
    """Say whether enough targets have answered: what still waits is no more than may be silent."""
    waiting = states[State.PENDING]
    return not waiting or waiting + states[State.SILENT] <= limits.silent * states.total()


def failures(evidence: Evidence, limits: Limits) -> Finding:
    """Hold failed and refusing targets against the share that may fail."""
    count = evidence.states[State.FAILED]
    text = f"{count} of {evidence.targets} targets failed (limit {limits.failed:.0%})"
    return _finding("failures", count > limits.failed * evidence.targets, text + _because(evidence, count))


def silence(evidence: Evidence, limits: Limits) -> Finding:
    """Hold targets that are silent at their deadline against the share that may be."""
    count = evidence.states[State.SILENT]
    text = f"{count} of {evidence.targets} targets are silent (limit {limits.silent:.0%})"
    return _finding("silence", count > limits.silent * evidence.targets, text)


def errors(evidence: Evidence, limits: Limits) -> Finding:
    """Hold windows that the release failed on against their share."""
    tried = evidence.windows + evidence.errors
    text = f"{evidence.errors:,} errors in {tried:,} windows (limit {limits.errors:.1%})"
    return _finding("errors", evidence.errors > limits.errors * tried, text)


def latency(evidence: Evidence, limits: Limits) -> Finding:
    """Hold median and 99th percentile against what is never too slow, then against the release before.

    The percentile alone would let a release pass that is slow throughout, where the one before was slow now and then.
    """
    now, before = evidence.latency, evidence.latency_before
    if now.count < LEAST_BATCHES:
        return Finding("latency", Outcome.UNJUDGED, f"{now.count} latencies, {LEAST_BATCHES} are needed")
    breach, texts = False, []
    for name, share in (("median", 0.5), ("99th percentile", 0.99)):
        before_ms = before.quantile(share) * 1e3 if before.count >= LEAST_BATCHES else 0.0
        now_ms, limit_ms = now.quantile(share) * 1e3, max(limits.latency_ms, limits.slower * before_ms)
        breach = breach or now_ms > limit_ms
        texts.append(f"{name} {now_ms:.3g} ms (before {before_ms:.3g}, limit {limit_ms:.3g} ms)")
    return _finding("latency", breach, ", ".join(texts))


def memory(evidence: Evidence, limits: Limits) -> Finding:
    """Hold the median growth of the agents since they switched against the limit."""
    if not evidence.growth_bytes:
        return Finding("memory", Outcome.UNJUDGED, "no target has reported its memory")
    grown_mb = median(evidence.growth_bytes) / 2**20
    text = f"agents have grown by {grown_mb:.1f} MB since they switched, median (limit {limits.memory_mb:g} MB)"
    return _finding("memory", grown_mb > limits.memory_mb, text)


def shift(evidence: Evidence, limits: Limits) -> Finding:
    """Hold the distribution of predictions against that of the release before.

    The shadow's predictions on the same windows where they are enough, else those that the same targets made before
    they switched, which differ by what has happened since as well.
    """
    quality = limits.quality
    shadowed = evidence.shadow_scores.count >= quality.least_windows
    reference = evidence.shadow_scores if shadowed else evidence.scores_before
    fewest = min(evidence.scores.count, reference.count)
    if reference.count == 0:
        return _unjudged("shift", limits, "the release before has left no predictions to compare with", must=False)
    if fewest < quality.least_windows:
        return _unjudged("shift", limits, f"{fewest:,} predictions, {quality.least_windows:,} are needed", must=True)
    found = distance(evidence.scores, reference)
    whose = "the release before on the same windows" if shadowed else "the release before on earlier windows"
    text = f"distance {found:.3f} from {whose} (limit {quality.shift:g}), {evidence.scores.count:,} predictions"
    return _finding("shift", found > quality.shift, text)


def disagreement(evidence: Evidence, limits: Limits) -> Finding:
    """Hold the differences from the shadow, window by window, against the spread of its predictions."""
    quality = limits.quality
    if not evidence.shadow_scores.count:
        return _unjudged("disagreement", limits, "no shadow has scored", must=False)
    if evidence.gaps.count < quality.least_windows:
        text = f"{evidence.gaps.count:,} windows with the shadow, {quality.least_windows:,} are needed"
        return _unjudged("disagreement", limits, text, must=True)
    low, high = (evidence.shadow_scores.quantile(share) for share in SPREAD)
    gap = evidence.gaps.magnitudes().quantile(AGREEING)
    share = gap / (high - low) if high > low else (math.inf if gap else 0.0)
    text = (
        f"{AGREEING:.0%} of windows are within {gap:.3g} of the shadow, {share:.2f} of its spread {high - low:.3g} "
        f"(limit {quality.disagreement:g}), {evidence.gaps.count:,} windows"
    )
    return _finding("disagreement", share > quality.disagreement, text)


Gate = Callable[[Evidence, Limits], Finding]
GATES: Final[tuple[Gate, ...]] = (failures, silence, errors, latency, memory, shift, disagreement)


def _finding(gate: str, breach: bool, text: str) -> Finding:
    return Finding(gate, Outcome.BREACHED if breach else Outcome.GOOD, text)


def _unjudged(gate: str, limits: Limits, text: str, *, must: bool) -> Finding:
    """Say that there is too little to judge by, which is a breach where the plan requires a judgement."""
    breach = must and limits.quality.required
    return Finding(gate, Outcome.BREACHED if breach else Outcome.UNJUDGED, text)


def _because(evidence: Evidence, count: int) -> str:
    return ": " + "; ".join(f"{reason} ({times})" for reason, times in evidence.reasons) if count else ""


def _growth(served: Served) -> int:
    return served.memory_bytes - served.start_bytes
