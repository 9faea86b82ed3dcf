"""Waves: every target once, sizes as planned, sites spared, the order nobody's choice."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.rollout.waves import Member, crowded, plan_waves, site_of, sites_of, waves_of

members = st.lists(
    st.builds(Member, st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.sampled_from(["", "n", "s"]), st.booleans()),
    max_size=60,
    unique_by=lambda member: member.target,
)
sizes = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 100).map(lambda n: f"{n}%")), max_size=3)
plans = st.builds(lambda waves, keep: Plan(waves=[*waves, "all"], healthy_per_site=keep), sizes, st.integers(0, 5))


@given(members, plans)
def test_every_target_is_asked_once(fleet: list[Member], plan: Plan) -> None:
    """Whatever the waves."""
    batches = plan_waves(fleet, plan, "seed")
    assert sorted(target for batch in batches for target in batch.targets) == sorted(m.target for m in fleet)
    assert all(batch.targets for batch in batches)


@given(members, plans)
def test_waves_are_as_large_as_planned(fleet: list[Member], plan: Plan) -> None:
    """After a wave's batches as many are asked as its size says, or as a larger wave before it asked."""
    batches = plan_waves(fleet, plan, "seed")
    reached = 0
    for number, wave in enumerate(plan.waves, 1):
        reached = max(reached, wave.of(len(fleet)))
        assert sum(len(batch.targets) for batch in batches if batch.wave <= number) == reached


@given(members, plans)
def test_a_site_keeps_its_healthy_targets(fleet: list[Member], plan: Plan) -> None:
    """No batch takes more of a site than it can spare; one at a time where it can spare none."""
    healthy = {member.target: member.site for member in fleet if member.healthy}
    there = Counter(healthy.values())
    for batch in plan_waves(fleet, plan, "seed"):
        for site, taken in Counter(healthy[target] for target in batch.targets if target in healthy).items():
            assert taken <= max(1, there[site] - plan.healthy_per_site)


@given(members, plans, st.randoms())
def test_a_site_has_no_more_out_at_once_than_it_has_room_for(fleet: list[Member], plan: Plan, random: Random) -> None:
    """Some of those that were asked do not come back: a batch is asked only while that leaves the site enough."""
    if plan.healthy_per_site and not any(member.site for member in fleet if member.healthy):
        fleet = [Member(member.target, "n", member.healthy) for member in fleet]
    sites, out = sites_of(fleet, plan), set[str]()
    assert bool(sites) == bool(plan.healthy_per_site and any(member.healthy for member in fleet))
    for batch in plan_waves(fleet, plan, "seed"):
        if crowded(sites, batch.targets, out):
            assert out
            break
        for site in (site for site in sites if set(batch.targets) & set(site.targets)):
            away = {*batch.targets, *out} & set(site.targets)
            assert len(away) <= max(1, len(site.targets) - plan.healthy_per_site)
        out |= {target for target in batch.targets if random.random() < 0.2}


def test_a_site_without_room_is_named_with_its_figures() -> None:
    """Four targets, two kept: with one gone for good, two more cannot be asked, and one can."""
    fleet = [Member(name, "north") for name in "abcd"] + [Member("e", "south")]
    sites = sites_of(fleet, Plan(healthy_per_site=2))
    assert [(site.name, site.room) for site in sites] == [("north", 2), ("south", 1)]
    said = "site north has room for 2 of 4 targets out at once: 1 do not work, 2 more were to change"
    assert crowded(sites, "cd", "a") == (said,)
    assert crowded(sites, "c", "a") == ()
    assert crowded(sites, "de", "ab") != ()
    assert crowded(sites, "e", "ab") == ()  # what its neighbours do is another site's affair


def test_a_label_that_no_target_bears_makes_no_sites() -> None:
    """One that was mistyped would spare nobody."""
    with pytest.raises(ReleaseError, match="by label `sit`: expected targets that bear it, got none"):
        sites_of([Member("a"), Member("b")], Plan(healthy_per_site=1, site_label="sit"))
    assert sites_of([Member("a"), Member("b")], Plan()) == ()


@given(members, plans, st.randoms())
def test_the_order_given_does_not_matter(fleet: list[Member], plan: Plan, random: object) -> None:
    """The same fleet, the same release: the same waves, so that a run that was killed goes on as it began."""
    batches = plan_waves(fleet, plan, "seed")
    random.shuffle(fleet)  # type: ignore[attr-defined]
    assert plan_waves(fleet, plan, "seed") == batches


@given(members, plans)
def test_a_batchs_wave_follows_from_the_sizes(fleet: list[Member], plan: Plan) -> None:
    """So that a process that goes on with a rollout need not know who was healthy when it was planned."""
    batches = plan_waves(fleet, plan, "seed")
    assert waves_of([len(batch.targets) for batch in batches], plan) == tuple(batch.wave for batch in batches)


def test_another_release_begins_with_other_targets() -> None:
    """It is not always the same gateway that tries what is new."""
    fleet = [Member(f"gw-{n}") for n in range(50)]
    plan = Plan.model_validate({"waves": [1, "all"]})
    assert len({plan_waves(fleet, plan, f"release-{n}")[0].targets for n in range(20)}) > 5


def test_targets_that_do_not_work_come_last() -> None:
    """They hold nobody up, and prove nothing."""
    fleet = [Member("a", healthy=False), Member("b"), Member("c", healthy=False), Member("d")]
    first, last = plan_waves(fleet, Plan.model_validate({"waves": ["50%", "all"]}), "seed")
    assert (set(first.targets), set(last.targets)) == ({"b", "d"}, {"a", "c"})


def test_short_and_long_waves_read_alike() -> None:
    """As a recipe may write them."""
    short = Plan.model_validate({"waves": [1, "10%", "all"]})
    long = Plan.model_validate({"waves": [{"size": "1"}, {"size": "10%", "soak_s": 0}, {"size": "all"}]})
    assert short == long
    assert [wave.of(15) for wave in short.waves] == [1, 2, 15]


@pytest.mark.parametrize("waves", [["0%", "all"], ["101%", "all"], [0, "all"], ["some", "all"], [1, "50%"], []])
def test_a_plan_that_makes_no_sense_is_refused(waves: list[object]) -> None:
    """When it is read, not when it is half carried out."""
    with pytest.raises(ValidationError):
        Plan.model_validate({"waves": waves})


def test_a_site_is_a_label() -> None:
    """Whatever the label is called."""
    assert site_of(("plant=x", "site=north=1"), "site") == "north=1"
    assert site_of(("plant=x",), "site") == ""
