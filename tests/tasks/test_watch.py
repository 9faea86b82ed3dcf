"""The stream's fill level and the devices' silence, on the real broker and lake."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from fieldloop.stores import broker, fleet
from fieldloop.stores.drain import fill
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.acquire import acquire
from tasks.watch import rows, watch

PROFILE = "senvion-mm82"  # every ten minutes

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


def message(device: str) -> tuple[str, bytes]:
    record = {"Wind_turbine_name": device, "Date_time": "2015-03-01T00:00:00+00:00", "Ws_avg": 5.0}
    return f"devices.{device}.readings", json.dumps(record).encode()


def test_silence_is_new_once_and_ends_with_the_next_message(data_plane: Settings, publish: Publish) -> None:
    """A device heard of is silent after six cadences, one never heard of at once; refused messages count as heard."""
    fleet.add_devices(Lake(data_plane), ["S1", "S2", "S3"], PROFILE)
    publish([message("S1"), ("devices.S3.readings", b"nonsense")])
    acquire(data_plane)
    now = datetime.now(UTC)
    found = watch(data_plane, 6, 0.5, now)
    assert [(each.device, each.last, each.new) for each in found.silent] == [("S2", None, True)]
    assert found.silent[0].allowed == timedelta(hours=1)
    later = watch(data_plane, 6, 0.5, now + timedelta(hours=2))
    assert {each.device: each.new for each in later.silent} == {"S1": True, "S2": False, "S3": True}
    assert {row["what"] for row in rows(later)} >= {"device `S1`", "stream `readings`"}
    publish([message("S2")])
    acquire(data_plane)
    assert [each.device for each in watch(data_plane, 6, 0.5, now).silent] == []


def test_stream_is_filling_by_what_is_not_in_the_lake(data_plane: Settings, publish: Publish) -> None:
    """What acquisition has brought in takes no room; what waits counts by bytes and by age, against real limits."""
    acquire(data_plane)
    now = datetime.now(UTC)
    assert watch(data_plane, 6, 0.5, now).fill.messages == 0
    publish([message("S1")] * 3)
    waiting = watch(data_plane, 6, 0.5, now + timedelta(days=1))
    assert (waiting.fill.messages, waiting.filling) == (3, False)
    assert 0 < waiting.fill.bytes_share < 0.001
    assert waiting.fill.age_share == pytest.approx(1 / 30, rel=0.01)
    assert watch(data_plane, 6, 0.5, now + timedelta(days=16)).filling
    assert watch(data_plane, 6, waiting.fill.bytes_share / 2, now).filling  # a moment at which none of them was old
    everything = fill(data_plane, broker.READINGS, 0, now)
    assert everything.messages > waiting.fill.messages
    acquire(data_plane)
    assert not watch(data_plane, 6, 0.5, now + timedelta(days=16)).filling
