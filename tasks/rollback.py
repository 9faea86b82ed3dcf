"""The end of a rollout: completed or stopped, rolled back to what targets ran before, or withdrawn when cancelled."""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID, uuid4

import msgspec
from nats.js import JetStreamContext
from prefect import task
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from fieldloop.domain.rollout import NOTHING, Desired, Sighting
from fieldloop.domain.rollout.record import Membership, Phase, Rollout
from fieldloop.stores import broker, rollouts
from fieldloop.stores.rollouts import now_us
from fieldloop.stores.settings import Settings
from tasks.wave import TICK_S

ROLLED_BACK_S: Final = 60.0  # for targets to say that they run again what they ran before


@task(name="roll back", timeout_seconds=3600, retries=3, retry_delay_seconds=5)
def roll_back(name: str, reasons: Sequence[str]) -> int:
    """Ask every asked target for what it ran before, and wait until they do; return how many do."""
    return asyncio.run(_roll_back(Settings(), name, reasons))


@task(name="end rollout", retries=3, retry_delay_seconds=5, timeout_seconds=600)
def end_rollout(name: str, phase: Phase, reasons: Sequence[str]) -> None:
    """Write down how the rollout ended, and let shadows rest."""
    asyncio.run(_end(Settings(), name, phase, reasons))


def stop(settings: Settings, name: str, reasons: Sequence[str]) -> None:
    """End a rollout where it is, outside of a task: its flow run is over in Prefect's eyes."""
    asyncio.run(_end(settings, name, Phase.STOPPED, reasons))


def withdraw(settings: Settings, run: UUID | str) -> tuple[str, ...]:
    """End what a cancelled flow run was rolling out: proved targets stay, all others are asked for what they ran.

    After this nothing of the rollout is still to happen anywhere. Return the names of the rollouts.
    """
    return asyncio.run(_withdraw(settings, str(run)))


def recall(settings: Settings, digest: str, reason: str) -> tuple[str, ...]:
    """End every rollout of a release that was revoked, and ask its targets for what they ran; return their names."""
    return asyncio.run(_recall(settings, digest, reason))


def mark(settings: Settings, name: str, phase: Phase) -> None:
    """Write down that a rollout waits for a person, or goes on."""
    asyncio.run(_mark(settings, name, phase))


async def take_over(js: JetStreamContext, name: str) -> str:
    """Write down that another process goes on with a rollout; return what stands for it."""
    holder = uuid4().hex
    while True:
        head = await rollouts.head(js, name)
        taken = msgspec.structs.replace(head.rollout, holder=holder, phase=Phase.RUNNING)
        if await rollouts.advance(js, head, taken) is not None:
            return holder


async def supersede(js: JetStreamContext, rollout: Rollout, newer: str) -> None:
    """End a rollout whose targets a newer one has taken; its run finds out by itself, unless it waits for a person."""
    await _conclude(js, rollout.name, Phase.SUPERSEDED, [f"superseded by {newer}"])
    if rollout.phase is Phase.ASKING and rollout.runs:
        async with get_client() as client:
            await client.set_flow_run_state(UUID(rollout.runs[-1]), Cancelling(message=f"superseded by {newer}"))


async def _roll_back(settings: Settings, name: str, reasons: Sequence[str]) -> int:
    async with broker.platform(settings) as (_, js):
        if not await _conclude(js, name, Phase.ROLLING_BACK, reasons):
            return 0
        members = await rollouts.membership(js, name)
        orders = await _restore(js, name, members, members.targets)
        restored = await _await_restored(js, orders)
        await _conclude(js, name, Phase.ROLLED_BACK, [*reasons, f"{restored} of {len(orders)} targets are back"])
        return restored


async def _restore(
    js: JetStreamContext, name: str, members: Membership, targets: Collection[str]
) -> dict[str, Desired]:
    """Ask those of the targets that this rollout has asked for what they ran before it; return those orders."""
    held = await rollouts.held(js, targets)
    issued_us, earlier = now_us(), members.earlier()
    orders = {
        target: Desired(*earlier[target], issued_us, name, labels=found.desired.labels)
        for target, found in held.items()
        if found.desired and found.desired.rollout == name and found.desired.release != earlier[target][0]
    }
    written, _ = await rollouts.ask(js, orders, held)
    back = {t: h.desired for t, h in held.items() if h.desired and h.desired.rollout == name and t not in orders}
    return {**back, **{target: each.desired for target, each in written.items() if each.desired}}


async def _await_restored(js: JetStreamContext, orders: Mapping[str, Desired]) -> int:
    """Wait until targets run what they ran before, at most `ROLLED_BACK_S`; return how many do."""
    back: dict[str, bool] = dict.fromkeys(orders, False)
    deadline = time.monotonic() + ROLLED_BACK_S
    async with rollouts.watch(js, orders) as watch:
        while not all(back.values()) and time.monotonic() < deadline:
            for target, sighting in (await watch.fresh(TICK_S)).items():
                back[target] = _runs_again(orders[target], sighting)
    return sum(back.values())


def _runs_again(order: Desired, sighting: Sighting) -> bool:
    running = sighting.report.running
    return (running.release if running else NOTHING) == order.release


async def _end(settings: Settings, name: str, phase: Phase, reasons: Sequence[str]) -> None:
    async with broker.platform(settings) as (_, js):
        members = await rollouts.membership(js, name)
        await _rest_shadows(js, name, members.targets)
        await _conclude(js, name, phase, reasons)


async def _rest_shadows(js: JetStreamContext, name: str, targets: Collection[str]) -> None:
    """Ask for the same releases without their shadows, so that gateways do not score twice for ever."""
    held = await rollouts.held(js, targets)
    orders = {
        target: msgspec.structs.replace(found.desired, shadow=None, shadow_manifest=None)
        for target, found in held.items()
        if found.desired and found.desired.rollout == name and found.desired.shadow
    }
    await rollouts.ask(js, orders, held)


async def _withdraw(settings: Settings, run: str) -> tuple[str, ...]:
    ended: list[str] = []
    async with broker.platform(settings) as (_, js):
        for head in await rollouts.heads(js):
            if not head.rollout.active or run not in head.rollout.runs:
                continue
            rollout, members = head.rollout, await rollouts.membership(js, head.rollout.name)
            seen = await rollouts.sightings(js, members.targets)
            waiting = [t for t in members.targets if not _runs_release(seen.get(t), rollout.release)]
            reason = f"cancelled; {len(waiting)} targets are left as they were"
            await _conclude(js, rollout.name, Phase.CANCELLED, [reason])
            await _restore(js, rollout.name, members, waiting)
            await _rest_shadows(js, rollout.name, members.targets)
            ended.append(rollout.name)
    return tuple(ended)


async def _recall(settings: Settings, digest: str, reason: str) -> tuple[str, ...]:
    ended: list[str] = []
    async with broker.platform(settings) as (_, js):
        for head in await rollouts.heads(js):
            name = head.rollout.name
            if head.rollout.release == digest and await _conclude(js, name, Phase.CANCELLED, [f"revoked: {reason}"]):
                members = await rollouts.membership(js, name)
                await _restore(js, name, members, members.targets)
                ended.append(name)
    return tuple(ended)


def _runs_release(sighting: Sighting | None, release: str) -> bool:
    running = sighting.report.running if sighting else None
    return running is not None and running.release == release


async def _conclude(js: JetStreamContext, name: str, phase: Phase, reasons: Sequence[str]) -> bool:
    """Write a rollout's phase and reasons unless it has ended already; return whether that was so."""
    while True:
        head = await rollouts.head(js, name)
        if not head.rollout.active:
            return False
        ended_us = 0 if phase is Phase.ROLLING_BACK else now_us()
        rollout = msgspec.structs.replace(
            head.rollout, phase=phase, findings=tuple(reasons) or head.rollout.findings, ended_us=ended_us
        )
        if await rollouts.advance(js, head, rollout) is not None:
            return True


async def _mark(settings: Settings, name: str, phase: Phase) -> None:
    async with broker.platform(settings) as (_, js):
        head = await rollouts.head(js, name)
        if head.rollout.active:
            await rollouts.advance(js, head, msgspec.structs.replace(head.rollout, phase=phase))
