"""What a rollback goes back to, which rollout counts, and what late joiners get."""

from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.release import Proof
from fieldloop.domain.rollout import NOTHING, Desired, Reported, Running
from fieldloop.domain.rollout.record import (
    Before,
    Membership,
    Phase,
    Rollout,
    before_rollout,
    joins,
    standing_release,
)

NEW, OLD, OLDER = "a" * 64, "b" * 64, "c" * 64
MANIFESTS = {OLD: "releases/m/2/manifest.json", OLDER: "releases/m/1/manifest.json", NEW: "releases/m/3/manifest.json"}
VERSIONS = {OLDER: 1, OLD: 2, NEW: 3}


def _asked(release: str) -> Desired:
    return Desired(release, MANIFESTS[release], 1, "r")


def _runs(release: str) -> Reported:
    return Reported("gw", 0, "1", Running(release, "m", VERSIONS[release], Proof("h", True, 0.0, True)))


def _rollout(name: str, issued_us: int, phase: Phase = Phase.COMPLETED, labels: tuple[str, ...] = ()) -> Rollout:
    return Rollout(name, issued_us, "r", "m", 1, NEW, MANIFESTS[NEW], labels, ("p",), phase=phase)


def test_targets_go_back_to_what_they_ran() -> None:
    """What was proved counts, not what was asked; nothing where they ran nothing."""
    found = before_rollout(
        NEW,
        ["proved", "silent", "refused", "empty"],
        {"proved": _asked(OLDER), "silent": _asked(OLD), "refused": _asked(OLD)},
        {"proved": _runs(OLD), "refused": Reported("gw", 0, "1", refused=True)},
    )
    assert Membership((), found).earlier() == {
        "proved": (OLD, MANIFESTS[OLD]),
        "silent": (OLD, MANIFESTS[OLD]),
        "refused": (NOTHING, ""),
        "empty": (NOTHING, ""),
    }


def test_a_rollout_that_was_killed_halfway_is_not_its_own_past() -> None:
    """Targets that it has moved go back to what they ran before it."""
    reports = {"moved": _runs(NEW), "waiting": _runs(OLDER)}
    found = before_rollout(NEW, ["moved", "waiting"], {}, reports, [{"moved": (OLD, MANIFESTS[OLD])}])
    assert Membership((), found).earlier() == {"moved": (OLD, MANIFESTS[OLD]), "waiting": (OLDER, MANIFESTS[OLDER])}


def test_what_runs_the_release_already_stays() -> None:
    """Where no unfinished rollout brought it."""
    found = before_rollout(NEW, ["a"], {}, {"a": _runs(NEW)})
    assert found == (Before(NEW, MANIFESTS[NEW], ("a",)),)


@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from([OLD, OLDER, NEW, None]), max_size=20))
def test_every_target_has_one_past(running: dict[str, str | None]) -> None:
    """However they are grouped."""
    reports = {target: _runs(release) for target, release in running.items() if release}
    found = before_rollout(NEW, list(running), {}, reports)
    assert sorted(target for each in found for target in each.targets) == sorted(running)


def test_late_joiners_get_the_newest_completed_rollout_that_is_for_them() -> None:
    """One that was stopped or is under way is nobody's yet."""
    rollouts = [
        _rollout("old", 1),
        _rollout("north", 2, labels=("site=north",)),
        _rollout("bad", 3, Phase.ROLLED_BACK),
        _rollout("now", 4, Phase.RUNNING),
    ]
    north = standing_release(rollouts, ["site=north", "x=y"], ["p"])
    south = standing_release(rollouts, ["site=south"], ["p", "q"])
    assert (north and north.name, south and south.name) == ("north", "old")
    assert standing_release(rollouts, ["site=north"], ["q"]) is None


def test_only_what_is_newer_than_what_was_asked_is_missed() -> None:
    """A member that was rolled back later, or asked by hand, is no late joiner."""
    rollouts = [_rollout("done", 5)]
    assert joins(rollouts, [], ["p"], None) == rollouts[0]
    assert joins(rollouts, [], ["p"], Desired(OLD, "m", 4, "before")) == rollouts[0]
    assert joins(rollouts, [], ["p"], Desired(OLD, "m", 6, "after")) is None
    assert joins(rollouts, [], ["q"], None) is None
