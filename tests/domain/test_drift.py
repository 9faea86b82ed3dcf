"""Drift: what is merged from reports, and what a distance from the reference means."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.drift import PREDICTION, Distributions, Seen, Verdict, drifted, gather, hold_against
from fieldloop.domain.recipe.rules import Drift
from fieldloop.domain.release import Proof
from fieldloop.domain.rollout import Reported, Running, Served
from fieldloop.domain.sketch import Sketch, merge

RULE = Drift(limit=0.2, least_values=500)
PROOF = Proof("", exact=True, max_abs_diff=0.0, passed=True)
ONE, TWO = (Running(f"digest-{version}", "model", version, PROOF) for version in (1, 2))
values = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=40).map(np.array)


def report(target: str, wind: np.ndarray, running: Running | None = ONE) -> Reported:
    """What a target says that has seen this wind and predicts twice as much."""
    served = Served(running.release, scores=Sketch.of(2 * wind)) if running else None
    return Reported(target, 0, "", running, served=served, inputs={"wind": Sketch.of(wind)})


def seen(wind: np.ndarray) -> Distributions:
    """The distributions of this wind."""
    return Distributions({"wind": Sketch.of(wind)}, Sketch.of(2 * wind))


def verdicts(known: np.ndarray, live: np.ndarray, rule: Drift = RULE) -> dict[str, Verdict]:
    """The verdict of each channel."""
    return {finding.channel: finding.verdict for finding in hold_against(seen(known), seen(live), rule)}


@given(st.lists(values, min_size=1, max_size=5), st.randoms())
def test_the_fleet_is_one_however_it_is_divided(parts: list[np.ndarray], random: object) -> None:
    """Whichever targets saw which values, in whatever order they are read, the fleet has seen all of them."""
    reports = [report(str(number), part) for number, part in enumerate(parts)]
    random.shuffle(reports)  # type: ignore[attr-defined]
    found = gather("model", reports)
    assert found == Seen(ONE, len(parts), seen(np.concatenate(parts)))


@given(values, values)
def test_a_distance_is_a_share_and_to_itself_nothing(known: np.ndarray, live: np.ndarray) -> None:
    """Missing values or none, few or many; and the two may change places."""
    rule = Drift(least_values=1)
    there, back = (hold_against(seen(a), seen(b), rule) for a, b in ((known, live), (live, known)))
    assert [one.distance for one in there] == [one.distance for one in back]
    assert all(0 <= finding.distance <= 1 for finding in there)
    assert not any(finding.distance for finding in hold_against(seen(known), seen(known), rule))


@given(values, st.integers(0, 60))
def test_too_few_values_never_drift(live: np.ndarray, least: int) -> None:
    """However far away they lie."""
    known = np.full(60, 1e9)
    rule = Drift(limit=0.01, least_values=1 + least)
    far = [f for f in hold_against(seen(known), seen(live), rule) if f.verdict is Verdict.DRIFTED]
    assert not far or len(live) > least


def test_a_sample_of_the_same_is_steady_and_a_shifted_one_is_not() -> None:
    """A thousand values of each; the furthest comes first."""
    rng = np.random.default_rng(7)
    known, same = rng.gamma(4, 2, 1000), rng.gamma(4, 2, 1000)
    assert set(verdicts(known, same).values()) == {Verdict.STEADY}
    live = Distributions({"wind": Sketch.of(1.4 * same)}, Sketch.of(9 * same))
    assert [finding.channel for finding in drifted(hold_against(seen(known), live, RULE))] == [PREDICTION, "wind"]


def test_a_channel_that_falls_silent_drifts() -> None:
    """What is missing lies above all values: half of them gone is a gap of a half."""
    known = np.random.default_rng(7).gamma(4, 2, 1000)
    half = np.where(np.arange(1000) % 2, np.nan, known)
    assert verdicts(known, half)["wind"] is Verdict.DRIFTED
    assert verdicts(half, half)["wind"] is Verdict.STEADY
    (wind, _) = hold_against(seen(known), Distributions({}, Sketch()), RULE)
    assert (wind.values, wind.verdict) == (0, Verdict.TOO_FEW)


def test_a_channel_of_the_season_is_shown_and_not_judged() -> None:
    """Its distance stands in the table all the same."""
    known = np.ones(1000)
    rule = Drift(least_values=500, unjudged=("wind",))
    wind, prediction = hold_against(seen(known), seen(2 * known), rule)
    assert (wind.distance, wind.verdict) == (1, Verdict.UNJUDGED)
    assert prediction.verdict is Verdict.DRIFTED


def test_only_the_release_that_most_targets_run_counts() -> None:
    """Neither one that is being tried, nor another model's, nor a target that runs nothing; of two, the newer."""
    ones, other = np.ones(3), Running("else", "another", 9, PROOF)
    few = [report("a", ones), report("b", ones), report("c", 5 * ones, TWO), report("d", ones, other)]
    found = gather("model", [*few, report("e", ones, None)])
    assert found is not None
    assert (found.running, found.targets) == (ONE, 2)
    assert found.distributions.inputs["wind"] == merge([Sketch.of(ones)] * 2)
    even = gather("model", [report("a", ones), report("c", ones, TWO)])
    assert even is not None
    assert even.running == TWO
    assert gather("nothing", few) is None
