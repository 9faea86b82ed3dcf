"""Acquisition, broker and object store are killed while devices publish: nothing is lost, nothing is there twice."""

from benchmarks.chaos import Plan, run
from benchmarks.plant import data_plane


def test_three_kills_lose_and_double_nothing() -> None:
    """The benchmark `chaos` at a hundredth of its size: in the end the lake is the truth, to the row."""
    plan = Plan(readings=20_000, a_message=10, kills=3, pause_s=1.5, batch=300, alone=100)
    with data_plane(restart=True) as settings:
        outcome = run(settings, plan)
    assert (outcome.lost, outcome.twice, outcome.wrong) == (0, 0, 0)
    assert outcome.readings + outcome.held == plan.readings
    assert outcome.quarantined == outcome.malformed > 0
    assert outcome.sent > plan.readings // plan.a_message + outcome.malformed
    assert sum(outcome.killed.values()) == plan.kills
