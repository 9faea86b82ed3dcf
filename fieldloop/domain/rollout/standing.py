"""Where a target stands in a rollout: proved, pending, failed or silent, with the reason that a person reads."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fieldloop.domain.release import Manifest, Proof
from fieldloop.domain.rollout.protocol import Desired, Reported, Reverted

TOLD: Final = 400  # characters of a target's own words that a reason takes over


@dataclass(frozen=True)
class Sighting:
    """A report and when the broker stored it (microseconds since the epoch, UTC): a clock that all targets share."""

    report: Reported
    seen_us: int


class State(StrEnum):
    """Where one target stands."""

    PROVED = "proved"
    PENDING = "pending"
    FAILED = "failed"
    SILENT = "silent"


@dataclass(frozen=True)
class Standing:
    """One target's place in a rollout, with the reason a person reads."""

    target: str
    state: State
    release: str | None
    proof: Proof | None
    reason: str


@dataclass(frozen=True)
class Clock:
    """The times a judgement needs, microseconds: now, the rollout's deadline, and how long a report stays good."""

    now_us: int
    deadline_us: int
    silence_us: int


def judge(
    target: str, desired: Desired, manifest: Manifest, sighting: Sighting | None, clock: Clock, unusable: str = ""
) -> Standing:
    """Say where one target stands.

    It is proved only when it reports the desired digest with the canary outputs of the manifest, in a report that is
    still fresh. A target that is not proved at the deadline has failed, or is silent; so is one that says what cannot
    be used, for the reason `unusable`.
    """
    if sighting is None or clock.now_us - sighting.seen_us > clock.silence_us:
        state = State.SILENT if clock.now_us >= clock.deadline_us else State.PENDING
        return Standing(target, state, None, None, unusable[:TOLD] or _silence(sighting, clock))
    report = sighting.report
    running = report.running
    release, proof = (running.release, running.proof) if running else (None, None)
    if running is not None and running.release == desired.release:
        state, reason = _prove(running.proof, manifest.suited(desired.labels))
    elif (reverted := report.reverted) and _same(reverted, desired):
        state, reason = State.FAILED, f"went back by itself: {reverted.reason[:TOLD]}"
    elif report.refused and report.attempted == desired.release and _answers(sighting, desired):
        state, reason = State.FAILED, f"refused: {(report.error or 'without a word')[:TOLD]}"
    else:
        state = State.FAILED if clock.now_us >= clock.deadline_us else State.PENDING
        reason = _waiting(report, desired)
    return Standing(target, state, release, proof, reason)


def _same(reverted: Reverted, desired: Desired) -> bool:
    return (reverted.release, reverted.issued_us) == (desired.release, desired.issued_us)


def _answers(sighting: Sighting, desired: Desired) -> bool:
    """Say whether a report answers this order; an older agent's does if the broker stored it after the order."""
    answered = sighting.report.answers_us
    return answered == desired.issued_us if answered else sighting.seen_us >= desired.issued_us


def _prove(proof: Proof, manifest: Manifest) -> tuple[State, str]:
    """Judge the reported proof by the manifest's own figures, not by the target's verdict."""
    if proof.output_hash == manifest.output_hash:
        return State.PROVED, "canary outputs equal bit for bit"
    if proof.max_abs_diff is not None and proof.max_abs_diff <= manifest.tolerance:
        return State.PROVED, f"canary outputs within {manifest.tolerance:g} {manifest.unit}: {proof.max_abs_diff:g}"
    return State.FAILED, f"canary outputs off by {proof.max_abs_diff}, allowed {manifest.tolerance:g} {manifest.unit}"


def _silence(sighting: Sighting | None, clock: Clock) -> str:
    if sighting is None:
        return "has never reported: is its agent running?"
    return f"last report {(clock.now_us - sighting.seen_us) / 1e6:.0f} s ago: is its agent running?"


def _waiting(report: Reported, desired: Desired) -> str:
    now = f"runs {report.running.release[:12]}" if report.running else "runs nothing"
    error = f"; last error: {report.error[:TOLD]}" if report.error and report.attempted == desired.release else ""
    return f"{now}, not yet {desired.release[:12]}{error}"
