"""Sparkplug's aliases through broker and lake: what a birth named, later runs know, and what came before it waits."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from fieldloop.domain.readings import Reason
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.acquire import Share, acquire
from tasks.quarantine import Choice, replay, waiting
from tests.domain.payloads.samples import sparkplug
from tests.tasks.sources import Workshop, workshop

PROFILE = """
name: meter
description: An edge node.
format: sparkplug-b
cadence: 1 min
channels:
  - {metric: temperature, field: Inputs/Temp, source_unit: degC, unit: degC, range: [-60, 300]}
  - {metric: humidity, field: Inputs/Hum, source_unit: percent, unit: percent, range: [0, 100]}
"""
NOON_MS = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


def said(device: str, minute: int, *metrics: dict[str, object]) -> tuple[str, bytes]:
    return f"devices.{device}.readings", sparkplug(*metrics, timestamp=NOON_MS + 60_000 * minute)


def birth(device: str, minute: int, temperature: int, humidity: int) -> tuple[str, bytes]:
    named = {"Inputs/Temp": temperature, "Inputs/Hum": humidity}
    return said(device, minute, *({"name": n, "alias": a, "double_value": 20.0} for n, a in named.items()))


def data(device: str, minute: int, alias: int, value: float) -> tuple[str, bytes]:
    return said(device, minute, {"alias": alias, "double_value": value})


def stored(settings: Settings, device: str) -> list[tuple[str, int, float]]:
    rows = Lake(settings).scan("readings").filter(pl.col("device") == device).sort("event_time", "metric").collect()
    minutes = rows["event_time"].dt.epoch("ms") - NOON_MS
    return list(zip(rows["metric"], (minutes // 60_000).to_list(), rows["value"], strict=True))


def test_what_births_named_outlives_runs_and_partitions(data_plane: Settings, publish: Publish, tmp_path: Path) -> None:
    """Aliases alone, first without a birth, then by one, then by the next that turns them round; nothing is lost."""
    shop: Workshop = workshop(data_plane, tmp_path)
    shop.profile(PROFILE)
    fleet.add_devices(Lake(shop), ["B1", "B2"], "meter")
    publish([data("B1", 0, 1, 5.0), birth("B2", 0, 7, 8)])
    assert acquire(shop).quarantined == 1
    (row,) = waiting(Lake(shop)).filter(pl.col("device") == "B1").collect().to_dicts()
    assert (row["reason"], row["metric"]) == (Reason.NO_BIRTH, "alias 1")
    assert "no birth" in row["detail"]

    publish([birth("B1", 1, 1, 2), data("B1", 2, 1, 6.0)])
    acquire(shop)
    publish([data("B1", 3, 2, 40.0), data("B2", 3, 8, 41.0)])
    landed = [acquire(shop, share=Share(number, 2)) for number in (1, 2)]  # by others, who have it from the lake
    assert sum(each.readings for each in landed) == 2
    publish([birth("B1", 4, 2, 1), data("B1", 5, 1, 50.0)])
    assert acquire(shop).quarantined == 0
    assert replay(shop, Choice(reason=Reason.NO_BIRTH)).settled == 1
    by_name = {("temperature", 0): 5.0, ("temperature", 2): 6.0, ("humidity", 3): 40.0, ("humidity", 5): 50.0}
    born = {(metric, minute): 20.0 for metric in ("temperature", "humidity") for minute in (1, 4)}
    assert {(metric, minute): value for metric, minute, value in stored(shop, "B1")} == by_name | born
    assert ("humidity", 3, 41.0) in stored(shop, "B2")
