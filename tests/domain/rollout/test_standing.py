"""Where targets stand in a rollout, and that the reasons name what a person must know."""

import msgspec

from fieldloop.domain.release import File, Manifest, Proof
from fieldloop.domain.rollout import (
    Clock,
    Desired,
    Reported,
    Reverted,
    Running,
    Sighting,
    Standing,
    State,
    judge,
)
from fieldloop.domain.windows import WindowSpec

NEW, OLD = "a" * 64, "b" * 64
DESIRED = Desired(NEW, "releases/power/1/manifest.json", issued_us=100, rollout="r")
MANIFEST = Manifest(
    "power", "power", 1, "run", WindowSpec((), (), 1, 2), {}, "p", "kW", (), File("", 0), File("", 0), "hash", 0.5, {},
    {}, "",
)  # fmt: skip
EXACT = Proof("hash", True, 0.0, True)
EARLY, LATE = Clock(200, 1000, 500), Clock(1200, 1000, 1500)


def _judge(report: Reported | None, clock: Clock, seen_us: int = 150) -> Standing:
    return judge("gw", DESIRED, MANIFEST, Sighting(report, seen_us) if report else None, clock)


def _report(release: str | None, proof: Proof = EXACT) -> Reported:
    return Reported("gw", 0, "1", Running(release, "power", 1, proof) if release else None)


def test_desired_digest_with_equal_outputs_is_proved() -> None:
    """The digest and the canary's hash are what counts."""
    assert _judge(_report(NEW), EARLY).state is State.PROVED


def test_outputs_within_tolerance_are_proved_and_beyond_it_failed() -> None:
    """The platform judges by the manifest, not by what the target says of itself."""
    assert _judge(_report(NEW, Proof("other", False, 0.4, False)), EARLY).state is State.PROVED
    far = _judge(_report(NEW, Proof("other", False, 0.6, True)), EARLY)
    assert far.state is State.FAILED
    assert "0.6" in far.reason


def test_another_release_is_pending_then_failed() -> None:
    """Until the deadline a target may still be on its way."""
    assert _judge(_report(OLD), EARLY).state is State.PENDING
    late = _judge(_report(OLD), LATE)
    assert late.state is State.FAILED
    assert f"runs {OLD[:12]}, not yet {NEW[:12]}" in late.reason


def test_an_error_that_may_pass_is_pending_and_named() -> None:
    """A target that tries again says what it tries against."""
    report = msgspec.structs.replace(_report(OLD), attempted=NEW, error="mirror not reachable")
    standing = _judge(report, EARLY)
    assert standing.state is State.PENDING
    assert "mirror not reachable" in standing.reason


def test_a_refusal_fails_at_once_with_its_reason() -> None:
    """Nobody waits for a deadline when the target has said no."""
    report = msgspec.structs.replace(_report(OLD), attempted=NEW, error="tampered", refused=True)
    standing = _judge(report, EARLY)
    assert (standing.state, standing.reason) == (State.FAILED, "refused: tampered")
    assert standing.release == OLD


def test_a_refusal_from_before_the_order_does_not_count() -> None:
    """Asked again, the target may answer otherwise."""
    report = msgspec.structs.replace(_report(OLD), attempted=NEW, error="tampered", refused=True)
    assert _judge(report, EARLY, seen_us=99).state is State.PENDING


def test_a_refusal_names_the_order_that_it_answers() -> None:
    """Where the agent says which order it answers, clocks do not matter."""
    report = msgspec.structs.replace(_report(OLD), attempted=NEW, error="tampered", refused=True, answers_us=99)
    assert _judge(report, EARLY).state is State.PENDING
    assert _judge(msgspec.structs.replace(report, answers_us=100), EARLY, seen_us=1).state is State.FAILED


def test_a_target_that_went_back_by_itself_has_failed() -> None:
    """Only of this order: asked anew, it tries anew."""
    reverted = Reverted(NEW, "3 crashes in 60 s", issued_us=100)
    standing = _judge(msgspec.structs.replace(_report(OLD), reverted=reverted), EARLY)
    assert (standing.state, standing.reason) == (State.FAILED, "went back by itself: 3 crashes in 60 s")
    earlier = msgspec.structs.replace(reverted, issued_us=99)
    assert _judge(msgspec.structs.replace(_report(OLD), reverted=earlier), EARLY).state is State.PENDING


def test_reports_and_orders_of_older_agents_still_decode() -> None:
    """What came later has defaults, and what an old agent does not know it passes over."""
    old = b'{"target":"gw","at_us":1,"runtime":"1","running":null,"attempted":null,"refused":false,"error":null}'
    assert msgspec.json.decode(old, type=Reported) == Reported("gw", 1, "1")
    order = b'{"release":"r","manifest":"m","issued_us":1,"rollout":"x","later":1}'
    assert msgspec.json.decode(order, type=Desired) == Desired("r", "m", 1, "x")


def test_no_report_is_pending_then_silent() -> None:
    """A target that never speaks has a state of its own."""
    assert _judge(None, EARLY).state is State.PENDING
    assert _judge(None, LATE).state is State.SILENT


def test_an_old_proof_is_no_proof() -> None:
    """What ran yesterday may be dead today."""
    clock = Clock(now_us=2000, deadline_us=1000, silence_us=500)
    standing = _judge(_report(NEW), clock)
    assert standing.state is State.SILENT
    assert "last report" in standing.reason
