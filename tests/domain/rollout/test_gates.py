"""Gates: what breaches them, what does not, and what they say."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from fieldloop.domain.release import Proof
from fieldloop.domain.rollout import Reported, Running, Served, Shadow, Standing, State
from fieldloop.domain.rollout.gates import Outcome, answered, breached, gather, judge_gates
from fieldloop.domain.rollout.plan import Limits, Quality
from fieldloop.domain.sketch import Sketch

NEW, OLD = "a" * 64, "b" * 64
PROOF = Proof("h", True, 0.0, True)
RNG = np.random.default_rng(3)
SCORES = RNG.normal(800, 200, 400)
MB = 2**20


def _report(
    scores: np.ndarray = SCORES, shadow: np.ndarray | None = SCORES, latency_s: float = 0.001, grown: int = 0
) -> Reported:
    """A target that switched from OLD to NEW and has scored the same windows with both."""
    served = Served(
        NEW, 0, len(scores), 0, 0, Sketch.of(np.full(50, latency_s)), Sketch.of(scores), 60 * MB, 60 * MB + grown
    )
    before = Served(OLD, 0, 400, latency=Sketch.of(np.full(50, 0.001)), scores=Sketch.of(SCORES))
    beside = None
    if shadow is not None:
        beside = Shadow(OLD, NEW, PROOF, windows=len(shadow), gaps=Sketch.of(shadow - scores), scores=Sketch.of(shadow))
    return Reported("gw", 0, "1", Running(NEW, "m", 2, PROOF), served=served, before=before, shadow=beside)


def _standings(*states: State) -> list[Standing]:
    return [Standing(f"gw-{n}", state, NEW, PROOF, f"because {state}") for n, state in enumerate(states)]


def _breaches(report: Reported, limits: Limits | None = None) -> set[str]:
    evidence = gather(NEW, _standings(State.PROVED), [report])
    return {finding.gate for finding in breached(judge_gates(evidence, limits or Limits()))}


def test_the_same_model_again_passes_every_gate() -> None:
    """Equal predictions, equal latency, no growth: all judged, all good."""
    findings = judge_gates(gather(NEW, _standings(State.PROVED), [_report()]), Limits())
    assert {finding.outcome for finding in findings} == {Outcome.GOOD}


def test_a_better_model_passes() -> None:
    """Small differences are what retraining is for."""
    assert _breaches(_report(SCORES + RNG.normal(0, 40, 400))) == set()


def test_wrong_predictions_breach_shift_and_disagreement() -> None:
    """Half of everything, with a canary that passed."""
    assert _breaches(_report(SCORES * 0.5)) == {"shift", "disagreement"}


def test_shuffled_predictions_have_the_same_distribution_and_still_disagree() -> None:
    """What only the shadow can see."""
    assert _breaches(_report(RNG.permutation(SCORES))) == {"disagreement"}


def test_without_a_shadow_earlier_predictions_are_the_reference() -> None:
    """Of the same targets."""
    assert _breaches(_report(SCORES * 0.5, shadow=None)) == {"shift"}
    assert _breaches(_report(shadow=None)) == set()


def test_too_few_windows_are_not_judged_unless_the_plan_requires_it() -> None:
    """A handful of windows breaches nothing by chance."""
    few = _report(SCORES[:50] * 0.1, shadow=SCORES[:50])
    assert _breaches(few) == set()
    assert _breaches(few, Limits(quality=Quality(required=True))) == {"shift", "disagreement"}


def test_a_first_release_has_nothing_to_be_compared_with() -> None:
    """Even where a judgement is required."""
    first = msgspec.structs.replace(_report(shadow=None), before=None)
    assert _breaches(first, Limits(quality=Quality(required=True))) == set()


def test_slow_is_slower_than_before_and_than_what_is_never_too_slow() -> None:
    """Three times a millisecond is still quick."""
    assert _breaches(_report(latency_s=0.015)) == set()
    assert _breaches(_report(latency_s=0.05)) == {"latency"}


def test_slow_throughout_is_found_where_the_release_before_was_slow_now_and_then() -> None:
    """By the median, which a busy gateway moves less than the 99th percentile."""
    report = _report(latency_s=0.05)
    noisy = np.concatenate([np.full(45, 0.001), np.full(5, 0.2)])
    assert report.before is not None
    before = msgspec.structs.replace(report.before, latency=Sketch.of(noisy))
    assert _breaches(msgspec.structs.replace(report, before=before)) == {"latency"}


def test_growing_memory_breaches() -> None:
    """By the median, so that one odd gateway stops nobody."""
    assert _breaches(_report(grown=200 * MB)) == {"memory"}
    reports = [_report(), _report(), _report(grown=200 * MB)]
    assert breached(judge_gates(gather(NEW, _standings(*[State.PROVED] * 3), reports), Limits())) == ()


def test_errors_breach() -> None:
    """Counted over all targets."""
    report = _report()
    assert report.served is not None
    assert _breaches(msgspec.structs.replace(report, served=msgspec.structs.replace(report.served, errors=40))) == {
        "errors"
    }


def test_figures_of_another_release_do_not_count() -> None:
    """A report from before the switch says nothing of the new release."""
    report = msgspec.structs.replace(_report(SCORES * 0.5), running=Running(OLD, "m", 1, PROOF))
    evidence = gather(NEW, _standings(State.PENDING), [report])
    assert (evidence.windows, evidence.scores, evidence.gaps) == (0, Sketch(), Sketch())


@pytest.mark.parametrize(
    ("failed", "silent", "gates"),
    [
        (0, 0, ()),
        (2, 0, ()),
        (3, 0, ("failures",)),
        (0, 10, ()),
        (0, 11, ("silence",)),
        (3, 11, ("failures", "silence")),
    ],
)
def test_failures_and_silence_are_shares(failed: int, silent: int, gates: Sequence[str]) -> None:
    """Of all that were asked; 2 % and 10 % of 100."""
    states = [State.FAILED] * failed + [State.SILENT] * silent
    states += [State.PROVED] * (100 - len(states))
    found = breached(judge_gates(gather(NEW, _standings(*states), []), Limits()))
    assert tuple(finding.gate for finding in found) == gates


def test_a_finding_names_the_reasons() -> None:
    """So that a person sees why without looking at a target."""
    findings = breached(judge_gates(gather(NEW, _standings(State.FAILED, State.FAILED), []), Limits()))
    assert findings[0].text == "2 of 2 targets failed (limit 2%): because failed (2)"


def test_a_wave_does_not_wait_for_as_many_as_may_be_silent() -> None:
    """One of ten may; two of ten may not."""
    limits = Limits(silent=0.1)
    proved = [State.PROVED] * 8
    assert answered(_counted(*proved, State.PROVED, State.PENDING), limits)
    assert not answered(_counted(*proved, State.PENDING, State.PENDING), limits)
    assert answered(_counted(*proved, State.SILENT, State.SILENT), limits)  # nobody is waited for any more
    assert not answered(_counted(State.PENDING), limits)


def _counted(*states: State) -> Counter[State]:
    return Counter(states)
