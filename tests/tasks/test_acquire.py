"""From the broker into the lake: exactly once, whatever is sent and whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from expectations.profiles import load_profile
from fieldloop.domain.readings import Reason
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local.turbines import payloads, source_readings
from tasks.acquire import acquire
from tasks.partitions import positions

PROFILE = "senvion-mm82"
RUN = (
    "import sys; from fieldloop.stores.settings import Settings; from tasks.acquire import acquire; acquire(Settings())"
)
DEADLINE_S = 90

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


@pytest.fixture(scope="module", autouse=True)
def enrolled(data_plane: Settings) -> None:
    """Enter two devices into the fleet."""
    fleet.add_devices(Lake(data_plane), ["T1", "T2"], PROFILE)


def record(device: str, minute: int, **fields: object) -> dict[str, object]:
    stamp = f"2015-03-01T{minute // 60:02}:{minute % 60:02}:00+01:00"
    return {"Wind_turbine_name": device, "Date_time": stamp, "Ws_avg": 5.0, "P_avg": 100.0} | fields


def message(device: str, *records: dict[str, object]) -> tuple[str, bytes]:
    return f"devices.{device}.readings", json.dumps(records).encode()


def readings(settings: Settings) -> pl.DataFrame:
    return Lake(settings).scan("readings").collect()


def test_readings_land_once_however_often_they_are_sent(data_plane: Settings, publish: Publish) -> None:
    """Re-sent messages, overlapping records and a second run add nothing; of two values the first stays."""
    first, second = record("T1", 0), record("T1", 10)
    publish([message("T1", first), message("T1", first, second), message("T1", record("T1", 10, Ws_avg=9.0))])
    acquired = acquire(data_plane)
    assert (acquired.messages, acquired.readings, acquired.duplicates, acquired.quarantined) == (3, 4, 4, 0)
    again = acquire(data_plane)
    assert (again.messages, again.readings, again.table_version) == (0, 0, acquired.table_version)
    publish([message("T1", second)])
    resent = acquire(data_plane)
    assert (resent.messages, resent.readings, resent.duplicates) == (1, 0, 2)
    stored = readings(data_plane).filter(pl.col("device") == "T1")
    assert len(stored) == 4
    assert stored.filter(pl.col("metric") == "wind_speed")["value"].to_list() == [5.0, 5.0]
    assert stored["event_time"].min() == datetime(2015, 2, 28, 23, 0, tzinfo=UTC)


BAD = {
    "not JSON": (b"\x00\x01 nonsense", Reason.UNDECODABLE, None),
    "unknown metric": (record("T2", 0, Humidity=40), Reason.UNKNOWN_METRIC, "Humidity"),
    "wrong type": (record("T2", 0, Ws_avg="strong"), Reason.WRONG_TYPE, "wind_speed"),
    "out of range": (record("T2", 0, Ws_avg=4000.0), Reason.OUT_OF_RANGE, "wind_speed"),
    "in the future": (record("T2", 0) | {"Date_time": "2099-01-01T00:00:00+00:00"}, Reason.FUTURE, None),
    "another device": (record("T1", 0), Reason.WRONG_DEVICE, None),
    "2 MB": (b" " * (2 << 20), Reason.TOO_LARGE, None),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_quarantined_with_its_bytes(case: str, data_plane: Settings, publish: Publish) -> None:
    """A bad message goes to quarantine, whole, with its reason; the good one behind it lands."""
    payload, reason, metric = BAD[case]
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    minute = 60 + 10 * list(BAD).index(case)
    publish([("devices.T2.readings", raw), message("T2", record("T2", minute))])
    acquired = acquire(data_plane)
    assert acquired.quarantined == 1
    row = Lake(data_plane).scan("quarantine").sort("sequence").last().collect().row(0, named=True)
    assert (row["device"], row["reason"], row["metric"], row["payload"]) == ("T2", reason, metric, raw)
    assert row["detail"]
    assert row["subject"] == "devices.T2.readings"
    good = readings(data_plane).filter(pl.col("device") == "T2", pl.col("sequence") == row["sequence"] + 1)
    assert sorted(good["metric"]) == ["active_power", "wind_speed"]


def test_unknown_device_is_quarantined_until_it_is_enrolled(data_plane: Settings, publish: Publish) -> None:
    """What a stranger sends is kept apart; once enrolled, what it sends then lands."""
    publish([message("T9", record("T9", 0))])
    assert acquire(data_plane).quarantined == 1
    row = Lake(data_plane).scan("quarantine").sort("sequence").last().collect().row(0, named=True)
    assert row["reason"] == Reason.UNKNOWN_DEVICE
    assert "fieldloop device add" in row["detail"]
    fleet.add_devices(Lake(data_plane), ["T9"], PROFILE)
    publish([message("T9", record("T9", 10))])
    assert acquire(data_plane).readings == 2


def test_what_was_refused_before_a_kill_is_not_refused_again(
    data_plane: Settings, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between quarantine and readings, the next run's larger batch adds only what is new."""
    append = Lake.append

    def die(lake: Lake, table: str, *rest: Any, **further: Any) -> int:
        if table == "readings":
            raise KeyboardInterrupt
        return append(lake, table, *rest, **further)

    publish([("devices.T1.readings", b"nonsense before"), message("T1", record("T1", 600))])
    with monkeypatch.context() as patched:
        patched.setattr(Lake, "append", die)
        with pytest.raises(KeyboardInterrupt):
            acquire(data_plane)
    publish([("devices.T1.readings", b"nonsense behind")])
    assert (acquire(data_plane).readings, acquire(data_plane).messages) == (2, 0)
    refused = Lake(data_plane).scan("quarantine").filter(pl.col("payload").bin.starts_with(b"nonsense ")).collect()
    assert refused.sort("sequence")["payload"].to_list() == [b"nonsense before", b"nonsense behind"]


def test_quiet_time_follows_a_stream_that_is_still_written(data_plane: Settings, publish: Publish) -> None:
    """With a quiet time the run waits for more before it ends."""
    process = _start(data_plane, RUN.replace("acquire(Settings())", "print(acquire(Settings(), 3).messages)"))
    publish([message("T1", record("T1", 600))])
    publish([message("T1", record("T1", 610))])
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert int(out) >= 1
    assert acquire(data_plane).messages + int(out) == 2


def test_killed_acquisition_loses_and_doubles_nothing(data_plane: Settings, publish: Publish) -> None:
    """Killed with -9 at several moments, the runs together bring exactly the source's distinct readings."""
    devices = ["R80711", "R80721"]
    start, until = datetime(2014, 3, 1, tzinfo=UTC), datetime(2014, 6, 1, tzinfo=UTC)
    fleet.add_devices(Lake(data_plane), devices, PROFILE)
    sent = payloads(devices, start, until)
    publish([(f"devices.{d}.readings", p.encode()) for d, p in sent.select("device", "payload").iter_rows()])
    small = f"from fieldloop.stores import drain; drain.BATCH_MESSAGES = 300; {RUN}"
    before = max(positions(Lake(data_plane)).values())
    for commits in (1, 2, 1, 3):
        process = _start(data_plane, small)
        _await_commits(data_plane, commits, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert max(positions(Lake(data_plane)).values()) > before
    final = _start(data_plane, small)
    final.communicate(timeout=DEADLINE_S)
    assert final.returncode == 0

    key = ["device", "metric", "event_time"]
    metric_of = {channel.field: channel.metric for channel in load_profile(data_plane.root, PROFILE).channels}
    expected = source_readings(start, until, devices).with_columns(metric=pl.col("field").replace_strict(metric_of))
    stored = readings(data_plane).filter(pl.col("device").is_in(devices)).select(key)
    assert len(stored) == len(expected) == len(stored.unique())
    assert len(stored.join(expected, on=key, how="anti")) == 0
    assert len(expected.join(stored, on=key, how="anti")) == 0


def _start(settings: Settings, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **settings.environment()},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _await_commits(settings: Settings, commits: int, process: subprocess.Popen[str]) -> None:
    """Wait until a running acquisition has committed so many batches, or has ended."""
    lake = Lake(settings)
    wanted = (lake.version("readings") or 0) + commits
    deadline = time.monotonic() + DEADLINE_S
    while (lake.version("readings") or 0) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
