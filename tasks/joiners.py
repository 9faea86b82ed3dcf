"""Late joiners: targets that came, or got their labels, after a rollout had completed get its release all the same."""

import asyncio
from collections.abc import Collection

from prefect import task

from fieldloop.domain.rollout import Desired
from fieldloop.domain.rollout.record import joins
from fieldloop.stores import broker, fleet, releases, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.rollouts import now_us
from fieldloop.stores.settings import Settings


@task(name="converge late joiners", retries=2, retry_delay_seconds=5, timeout_seconds=600)
def converge_joiners() -> tuple[str, ...]:
    """Ask targets for the newest completed rollout that is for them, where nothing newer was asked of them."""
    return converge(Settings())


def converge(settings: Settings) -> tuple[str, ...]:
    """Do what `converge_joiners` says; return the names of the targets that were asked.

    Raises:
        StoreError: lake or broker do not answer.
    """
    lake = Lake(settings)
    revoked = {entry.digest for entry in releases.revoked(settings)}
    return asyncio.run(_converge(settings, fleet.targets(lake), fleet.devices(lake), revoked))


async def _converge(
    settings: Settings, targets: tuple[fleet.Target, ...], devices: dict[str, str], revoked: Collection[str]
) -> tuple[str, ...]:
    async with broker.platform(settings) as (_, js):
        known = [head.rollout for head in await rollouts.heads(js) if head.rollout.release not in revoked]
        busy = {
            target
            for rollout in known
            if rollout.active
            for target in (await rollouts.membership(js, rollout.name)).targets
        }
        idle = [target for target in targets if target.name not in busy]
        held = await rollouts.held(js, [target.name for target in idle])
        orders = {}
        for target in idle:
            asked = held[target.name].desired if target.name in held else None
            profiles = {devices[device] for device in target.devices if device in devices}
            rollout = joins(known, target.labels, profiles, asked)
            if rollout is not None:
                orders[target.name] = Desired(
                    rollout.release, rollout.manifest, now_us(), rollout.name, labels=target.labels
                )
        written, _ = await rollouts.ask(js, orders, held)
    return tuple(written)
