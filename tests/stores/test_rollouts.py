"""Desired state, reports and the records of rollouts, on a real broker."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import pytest
from nats.js import JetStreamContext

from fieldloop.domain.errors import StoreError
from fieldloop.domain.rollout import Desired, Reported
from fieldloop.domain.rollout.record import Membership, Phase, Rollout
from fieldloop.stores import broker, rollouts
from fieldloop.stores.settings import Settings

T = TypeVar("T")
MANY = rollouts.FEW + 50  # read as a whole bucket, not key by key


def _scores(target: str, sketch: bytes) -> bytes:
    return b'{"target":"%b","at_us":0,"runtime":"1","served":{"release":"d","scores":%b}}' % (target.encode(), sketch)


HOSTILE = {
    "broken": b"{",
    "empty": b"",
    "liar": msgspec.json.encode(Reported("honest", 0, "1")),
    "latin": b'{"target":"latin","at_us":0,"runtime":"\xff"}',
    "nested": b'{"target":"nested","at_us":0,"runtime":"1","more":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "digits": b'{"target":"digits","runtime":"1","at_us":' + b"9" * 10_000 + b"}",
    "long": msgspec.json.encode(Reported("long", 0, "1" * 100_000)),
    "negative": b'{"target":"negative","at_us":0,"runtime":"1","served":{"release":"d","windows":-1}}',
    "ragged": _scores("ragged", b'{"keys":[1,2],"counts":[1]}'),
    "shuffled": _scores("shuffled", b'{"keys":[2,1],"counts":[1,1]}'),
    "beyond": _scores("beyond", b'{"keys":[99999],"counts":[1]}'),
    "owing": _scores("owing", b'{"keys":[1],"counts":[-5]}'),
    "endless": _scores("endless", b'{"keys":[1],"counts":[9223372036854775807]}'),
}


def _with(settings: Settings, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    async def run() -> T:
        async with broker.platform(settings) as (_, js):
            return await work(js)

    return asyncio.run(run())


def _rollout(name: str, issued_us: int = 1) -> Rollout:
    return Rollout(name, issued_us, "r", "m", 1, "d", "p")


async def _report(js: JetStreamContext, target: str, report: Reported) -> None:
    await js.publish(f"$KV.reported.{target}", msgspec.json.encode(report))


@pytest.mark.parametrize("count", [1, 3, MANY])
def test_what_is_asked_is_what_is_held(nats: Settings, count: int) -> None:
    """Of one target or of a fleet; of a target that was never asked, nothing."""
    orders = {f"held-{count}-{n}": Desired("d", "m", n, "r") for n in range(count)}

    async def work(js: JetStreamContext) -> None:
        written, overtaken = await rollouts.ask(js, orders, {})
        assert overtaken == ()
        assert await rollouts.held(js, [*orders, "held-never"]) == written
        assert {target: held.desired for target, held in written.items()} == orders

    _with(nats, work)


def test_of_two_writers_the_second_finds_out(nats: Settings) -> None:
    """An older rollout that did not hear of a newer one undoes nothing."""

    async def work(js: JetStreamContext) -> None:
        before = await rollouts.held(js, ["race-a", "race-b"])
        newer = Desired("new", "m", 2, "newer")
        await rollouts.ask(js, {"race-a": newer}, before)
        older = Desired("old", "m", 1, "older")
        written, overtaken = await rollouts.ask(js, {"race-a": older, "race-b": older}, before)
        assert (tuple(written), overtaken) == (("race-b",), ("race-a",))
        assert (await rollouts.held(js, ["race-a"]))["race-a"].desired == newer

    _with(nats, work)


def test_sightings_bear_the_brokers_time(nats: Settings) -> None:
    """A target's own clock may be wrong; one that never reported is not there."""

    async def work(js: JetStreamContext) -> None:
        await _report(js, "clock", Reported("clock", 0, "1"))
        seen = await rollouts.sightings(js, ["clock", "clock-never"])
        assert list(seen) == ["clock"]
        assert seen["clock"].report.at_us == 0
        assert seen["clock"].seen_us > 1_600_000_000_000_000

    _with(nats, work)


def test_a_report_that_cannot_be_used_costs_only_itself(nats: Settings) -> None:
    """Why is said by target; the next good one is taken again."""

    async def work(js: JetStreamContext) -> None:
        for target, report in HOSTILE.items():
            await js.publish(f"$KV.reported.{target}", report)
        await _report(js, "honest", Reported("honest", 7, "1"))
        found = await rollouts.heard(js, [*HOSTILE, "honest"])
        assert set(found.sightings) == {"honest"}
        assert found.unusable.keys() == HOSTILE.keys()
        assert "a count a bucket" in found.unusable["ragged"]
        async with rollouts.watch(js, [*HOSTILE, "honest"]) as watch:
            while watch.unusable.keys() != HOSTILE.keys():
                await watch.fresh(5)
            await _report(js, "ragged", Reported("ragged", 8, "1"))
            while "ragged" not in await watch.fresh(5):
                pass
            assert watch.unusable.keys() == HOSTILE.keys() - {"ragged"}

    _with(nats, work)


@pytest.mark.parametrize("count", [2, MANY])
def test_a_watch_begins_with_the_last_reports_and_goes_on(nats: Settings, count: int) -> None:
    """Nothing that was said before is missed, and nothing after."""
    targets = [f"watch-{count}-{n}" for n in range(count)]

    async def work(js: JetStreamContext) -> None:
        await asyncio.gather(*(_report(js, target, Reported(target, 1, "1")) for target in targets))
        async with rollouts.watch(js, targets) as watch:
            seen: dict[str, int] = {}
            while len(seen) < count:
                seen |= {target: s.report.at_us for target, s in (await watch.fresh(5)).items()}
            await _report(js, targets[-1], Reported(targets[-1], 2, "1"))
            assert {t: s.report.at_us for t, s in (await watch.fresh(5)).items()} == {targets[-1]: 2}
            assert await watch.fresh(0.01) == {}

    _with(nats, work)


def test_records_are_listed_newest_first_and_written_by_one(nats: Settings) -> None:
    """Who has read an older record does not overwrite a newer one."""

    async def work(js: JetStreamContext) -> None:
        members = Membership((("a",), ("b", "c")), ())
        old = await rollouts.begin(js, _rollout("list-old", 10**18), members)
        new = await rollouts.begin(js, _rollout("list-new", 10**18 + 1), members)
        assert (await rollouts.heads(js))[:2] == (new, old)
        assert await rollouts.membership(js, "list-old") == members
        ended = await rollouts.advance(js, old, msgspec.structs.replace(old.rollout, phase=Phase.SUPERSEDED))
        assert ended is not None
        assert await rollouts.advance(js, old, msgspec.structs.replace(old.rollout, asked=3)) is None
        assert await rollouts.advance(js, old, old.rollout) is None  # with nothing to say it still finds out
        assert await rollouts.advance(js, new, new.rollout) == new
        assert await rollouts.head(js, "list-old") == ended

    _with(nats, work)


def test_names_are_given_once_and_unknown_ones_are_said(nats: Settings) -> None:
    """The error says where to look."""

    async def work(js: JetStreamContext) -> None:
        await rollouts.begin(js, _rollout("twice"), Membership((), ()))
        with pytest.raises(StoreError, match="'twice' already"):
            await rollouts.begin(js, _rollout("twice"), Membership((), ()))
        with pytest.raises(StoreError, match="no rollout 'none'; `fieldloop rollout list`"):
            await rollouts.head(js, "none")

    _with(nats, work)


def test_a_removed_target_leaves_nothing(nats: Settings) -> None:
    """Neither what it should run nor what it said."""

    async def work(js: JetStreamContext) -> None:
        await rollouts.desire(js, ["gone"], "d", "m", "test")
        await _report(js, "gone", Reported("gone", 0, "1"))
        await rollouts.forget(js, "gone")
        assert await rollouts.held(js, ["gone"]) == {}
        assert await rollouts.sightings(js, ["gone"]) == {}

    _with(nats, work)
