"""A release is taken back, or keys are replaced, under real agents, which never stand without a model."""

import asyncio
from datetime import UTC, datetime

import pytest

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import Release
from fieldloop.domain.rollout import Desired, Reported
from fieldloop.domain.rollout.record import Before, Membership, Phase, Rollout
from fieldloop.stores import broker, releases, rollouts, rotation
from fieldloop.stores.rollouts import now_us
from fieldloop.stores.signing import ROLES
from tasks.rollback import recall
from tests.edge.targets import Gateway, make_release, payload

REASON = "trained on the wrong unit"


@pytest.fixture
def running(gateway: Gateway) -> tuple[Gateway, Release, Release]:
    """Return a gateway that runs the second of two releases, with the first in the other slot."""
    first, second = (make_release(model=gateway.target, version=n, bias=float(n)) for n in (1, 2))
    gateway.start()
    for release in (first, second):
        gateway.desire(release)
        gateway.await_running(release)
    return gateway, first, second


def test_a_target_leaves_a_revoked_release_for_the_one_before(running: tuple[Gateway, Release, Release]) -> None:
    """It says why, takes the same order no more, and the platform gives it none."""
    gateway, first, second = running
    releases.revoke(gateway.settings, f"{gateway.target}/2", REASON)
    report = gateway.await_running(first)
    assert report.reverted is not None
    assert (report.reverted.release, REASON in report.reverted.reason) == (second.digest, True)
    order = _again(gateway, second)
    gateway.order(order)
    refused = gateway.await_report(lambda r: r.refused and r.answers_us == order.issued_us)
    assert "not among the signed targets" in (refused.error or "")
    assert refused.running is not None
    assert refused.running.release == first.digest
    with pytest.raises(ReleaseError, match=f"was revoked .*{REASON}"):
        releases.publish(gateway.settings, second)


def test_a_revoked_release_in_the_other_slot_is_not_installed(running: tuple[Gateway, Release, Release]) -> None:
    """Its files are here, and it was signed once: it is refused all the same, and is nothing to go back to."""
    gateway, first, second = running
    gateway.kill()
    releases.revoke(gateway.settings, f"{gateway.target}/1", REASON)
    order = _again(gateway, first)
    gateway.order(order)
    gateway.start()
    report = gateway.await_report(lambda r: r.refused and r.answers_us == order.issued_us)
    assert REASON in (report.error or "") or "not among the signed targets" in (report.error or "")
    assert report.running is not None
    assert (report.running.release, report.previous) == (second.digest, None)


def test_a_target_without_another_release_runs_on_until_there_is_one(gateway: Gateway) -> None:
    """A model that was taken back is better than none, and goes as soon as another is asked for."""
    only, other = (make_release(model=gateway.target, version=n, bias=float(n)) for n in (1, 2))
    gateway.start()
    gateway.desire(only)
    gateway.await_running(only)
    releases.revoke(gateway.settings, f"{gateway.target}/1", REASON)
    told = gateway.await_report(lambda r: REASON in (r.error or ""))
    assert told.running is not None
    gateway.send([payload(range(10))])
    gateway.await_rows(6)
    gateway.desire(other)
    report = gateway.await_running(other)
    assert _settled(gateway, report).previous is None


def test_a_rollout_of_a_revoked_release_ends(gateway: Gateway) -> None:
    """Its targets are asked for what they ran before, and it is written down why."""
    first, second = (make_release(model=gateway.target, version=n, bias=float(n)) for n in (1, 2))
    old, new = (releases.publish(gateway.settings, release) for release in (first, second))
    began = now_us()
    rollout = Rollout(f"{gateway.target}-2", began, "toy", gateway.target, 2, new.digest, new.manifest)
    members = Membership(((gateway.target,),), (Before(old.digest, old.manifest, (gateway.target,)),))

    async def begin() -> None:
        async with broker.platform(gateway.settings) as (_, js):
            await rollouts.begin(js, rollout, members)

    async def ended() -> tuple[Rollout, Desired | None]:
        async with broker.platform(gateway.settings) as (_, js):
            held = await rollouts.held(js, [gateway.target])
            return (await rollouts.head(js, rollout.name)).rollout, held[gateway.target].desired

    asyncio.run(begin())
    gateway.order(Desired(new.digest, new.manifest, began, rollout.name))
    entry = releases.revoke(gateway.settings, f"{gateway.target}/2", REASON)
    assert recall(gateway.settings, entry.digest, REASON) == (rollout.name,)
    head, desired = asyncio.run(ended())
    assert (head.phase, head.findings) == (Phase.CANCELLED, (f"revoked: {REASON}",))
    assert desired is not None
    assert desired.release == first.digest
    assert recall(gateway.settings, entry.digest, REASON) == ()


def test_a_running_agent_follows_new_keys(running: tuple[Gateway, Release, Release]) -> None:
    """Every key is replaced, root's twice; the next release comes, and what runs is not left."""
    gateway, _, second = running
    now = datetime.now(UTC)
    rotation.rotate(gateway.settings, ["root"], None, now)
    rotation.rotate(gateway.settings, ROLES, None, now)
    third = make_release(model=gateway.target, version=3, bias=3.0)
    gateway.desire(third)
    report = gateway.await_running(third)
    assert (report.previous, report.reverted) == (second.digest, None)


def _again(gateway: Gateway, release: Release) -> Desired:
    """Return an order of a release that is newer than what was asked before."""
    manifest = f"releases/{gateway.target}/{release.open(release.digest).version}/manifest.json"
    return Desired(release.digest, manifest, now_us(), "test")


def _settled(gateway: Gateway, report: Reported) -> Reported:
    """Return a report of after the target has looked at the list of releases again."""
    return gateway.await_report(lambda r: r.previous is None and r.at_us > report.at_us)
