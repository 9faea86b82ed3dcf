"""Who belongs to the fleet: devices with their profiles, targets with the devices they serve; newest row wins."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import nats.js.errors
import polars as pl

from fieldloop.stores import broker, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS


@dataclass(frozen=True)
class Target:
    """An edge gateway that runs the agent.

    Attributes:
        name: its identity at the broker.
        devices: the devices whose readings it scores; none where they are still to be assigned.
        labels: `key=value`, for rollouts to select by.
    """

    name: str
    devices: tuple[str, ...]
    labels: tuple[str, ...] = ()


def devices(lake: Lake) -> dict[str, str]:
    """Return each device's profile name."""
    newest = lake.scan("devices").group_by("device").agg(pl.col("profile").sort_by("added_at").last()).collect()
    return dict(newest.sort("device").iter_rows())


def targets(lake: Lake) -> tuple[Target, ...]:
    """Return all targets, by name; the newest row's devices are null where none are assigned, empty once removed."""
    rows = lake.scan("targets").sort("added_at").group_by("target").last().sort("target")
    newest = rows.filter(pl.col("devices").is_null() | (pl.col("devices").list.len() > 0)).collect()
    return tuple(Target(row["target"], tuple(row["devices"] or ()), tuple(row["labels"])) for row in newest.to_dicts())


def add_devices(lake: Lake, names: Sequence[str], profile: str) -> None:
    """Enter devices under a profile; those already under it are left alone."""
    known = devices(lake)
    fresh = [name for name in names if known.get(name) != profile]
    if fresh:
        rows = {"device": fresh, "profile": [profile] * len(fresh), "added_at": [datetime.now(UTC)] * len(fresh)}
        lake.append("devices", pl.DataFrame(rows, schema=SCHEMAS["devices"]))


def add_targets(settings: Settings, lake: Lake, wanted: Sequence[Target]) -> None:
    """Enter targets, and make the consumers from which their agents pull; those already there are left alone.

    One that is known and serves other devices now is told of them with its desired state.
    """
    asyncio.run(_add_consumers(settings, wanted))
    known = {target.name: target for target in targets(lake)}
    fresh = [target for target in wanted if target != known.get(target.name)]
    moved = [target for target in fresh if target.name in known and target.devices != known[target.name].devices]
    if moved:
        asyncio.run(_assign(settings, moved, devices(lake)))
    if fresh:
        rows = {
            "target": [target.name for target in fresh],
            "devices": [list(target.devices) or None for target in fresh],
            "labels": [list(target.labels) for target in fresh],
            "added_at": [datetime.now(UTC)] * len(fresh),
        }
        lake.append("targets", pl.DataFrame(rows, schema=SCHEMAS["targets"]))


def remove_targets(settings: Settings, lake: Lake, names: Sequence[str]) -> None:
    """Enter that targets serve no device any more, and forget what the broker keeps of them."""
    asyncio.run(_forget(settings, names))
    rows = {
        "target": list(names),
        "devices": [[]] * len(names),
        "labels": [[]] * len(names),
        "added_at": [datetime.now(UTC)] * len(names),
    }
    lake.append("targets", pl.DataFrame(rows, schema=SCHEMAS["targets"]))


async def _forget(settings: Settings, names: Sequence[str]) -> None:
    async with broker.platform(settings) as (_, js):
        for name in names:
            await rollouts.forget(js, name)
            with suppress(nats.js.errors.NotFoundError):
                await js.delete_consumer(broker.READINGS, name)


async def _assign(settings: Settings, moved: Sequence[Target], profiles: Mapping[str, str]) -> None:
    async with broker.platform(settings) as (_, js):
        served = {each.name: {name: profiles[name] for name in each.devices if name in profiles} for each in moved}
        await rollouts.assign(js, served)


async def _add_consumers(settings: Settings, wanted: Sequence[Target]) -> None:
    async with broker.platform(settings) as (_, js):
        for target in wanted:
            await broker.add_agent_consumer(js, target.name, target.devices)
