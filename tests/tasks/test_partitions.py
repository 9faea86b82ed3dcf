"""Partitions of the stream: any number of them, another one every time, and everything lands once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import polars as pl
import psutil
import pytest

from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Messages, Named
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import SLOTS, Settings
from tasks import acquire as acquisition
from tasks.acquire import Acquired, Share, acquire, describe, landed_event
from tasks.crew import Crew, _Worker
from tasks.landing import KEY
from tasks.partitions import positions, slot_of, slots_of

DEVICES = tuple(f"P{number:02}" for number in range(24))
READINGS = 2  # a record
SHARE = """
import sys
from fieldloop.stores import drain
from fieldloop.stores.settings import Settings
from tasks.acquire import Share, acquire
drain.BATCH_MESSAGES = 100
print("ready", flush=True)
sys.stdin.readline()
print(acquire(Settings(), share=Share(int(sys.argv[1]), 2)).readings)
"""

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


@pytest.fixture(scope="module", autouse=True)
def enrolled(data_plane: Settings) -> None:
    """Enter the devices into the fleet."""
    fleet.add_devices(Lake(data_plane), list(DEVICES), "senvion-mm82")


def round_of_messages(number: int) -> list[tuple[str, bytes]]:
    """A good message a device, the last round's good one again, and one that is no JSON."""
    sent = []
    for device in DEVICES:
        for minute in (number, max(0, number - 1)):
            record = {"Wind_turbine_name": device, "Date_time": f"2015-03-01T00:{minute:02}:00+01:00", "Ws_avg": 5.0,
                      "P_avg": 1.0}  # fmt: skip
            sent.append((f"devices.{device}.readings", json.dumps(record).encode()))
        sent.append((f"devices.{device}.readings", f"nonsense {number}".encode()))
    return sent


def in_processes(settings: Settings, partitions: int, monkeypatch: pytest.MonkeyPatch) -> Acquired:
    """Acquire in processes, however little there is."""
    with monkeypatch.context() as patched:
        patched.setattr(acquisition, "ALONE_MESSAGES", 0)
        return acquire(settings.model_copy(update={"partitions": partitions}))


def assert_all_once(settings: Settings, rounds: int) -> None:
    readings = Lake(settings).scan("readings").collect()
    assert len(readings) == readings.select(KEY).n_unique() == len(DEVICES) * READINGS * rounds
    refused = Lake(settings).scan("quarantine").collect()
    assert len(refused) == refused.select("device", "payload").n_unique() == len(DEVICES) * rounds


def test_every_slot_is_in_one_partition() -> None:
    """Whatever their number, partitions are disjoint and complete."""
    for partitions in range(1, SLOTS + 1):
        slots = sorted(slot for number in range(partitions) for slot in slots_of(number, partitions))
        assert slots == list(range(SLOTS))
    assert len({slot_of(device) for device in DEVICES}) > SLOTS // 2


def test_a_partition_that_is_not_there_is_refused() -> None:
    """The numbers of a form that do not fit are said."""
    with pytest.raises(StoreError, match="expected a partition from 1 to 2"):
        Share(3, 2)


def test_another_number_of_partitions_every_time(
    data_plane: Settings, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that were drained to different places, by others, in processes or not: nothing is lost or doubled."""
    publish(round_of_messages(0))
    parts = [acquire(data_plane, share=Share(number, 3)) for number in (1, 3)]
    assert 0 < sum(part.readings for part in parts) < len(DEVICES) * READINGS
    publish(round_of_messages(1))
    rest = in_processes(data_plane, 2, monkeypatch)
    assert rest.readings + sum(part.readings for part in parts) == 2 * len(DEVICES) * READINGS
    assert_all_once(data_plane, 2)
    publish(round_of_messages(2))
    whole = in_processes(data_plane, 4, monkeypatch)
    assert (whole.readings, whole.quarantined) == (len(DEVICES) * READINGS, len(DEVICES))
    assert whole.resent == dict.fromkeys(DEVICES, READINGS)
    assert set(positions(Lake(data_plane)).values()) == {whole.last_sequence}
    again = acquire(data_plane)
    assert (again.messages, again.readings, again.quarantined) == (0, 0, 0)
    assert_all_once(data_plane, 3)


def test_two_workers_drain_one_backlog_at_the_same_time(data_plane: Settings, publish: Publish) -> None:
    """Each takes a share, in a process of its own, commit by commit beside the other: all lands once."""
    before = len(Lake(data_plane).scan("readings").collect())
    rounds = range(50, 56)
    publish([message for number in rounds for message in round_of_messages(number)])
    lone = Lake(data_plane).version("readings")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, str(number)],
            env={**os.environ, **data_plane.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    pipes = [(worker.stdin, worker.stdout) for worker in workers if worker.stdin and worker.stdout]
    assert [out.readline() for _, out in pipes] == ["ready\n"] * 2
    for into, _ in pipes:
        into.write("go\n")
        into.flush()
    said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    landed = [int(text) for text in said]
    assert min(landed) > 0
    readings = Lake(data_plane).scan("readings").collect()
    assert len(readings) == readings.select(KEY).n_unique() == before + sum(landed)
    minutes = readings["event_time"].dt.minute()
    assert readings.filter(minutes.is_in(list(rounds))).height == len(DEVICES) * READINGS * len(rounds)
    assert Lake(data_plane).version("readings") > (lone or 0) + 2  # several commits each
    assert acquire(data_plane).messages == 0


def test_a_run_says_who_sent_again_and_what_landed(data_plane: Settings, publish: Publish) -> None:
    """The artifact counts re-sends a device; the event names version, devices, span and rows."""
    publish(round_of_messages(10)[:3] * 2)
    acquired = acquire(data_plane)
    first = DEVICES[0]
    assert f"| {first} | {acquired.resent[first]} |" in describe(acquired)
    event = landed_event(acquired)
    assert (event["devices"], event["names"], event["rows"]) == (1, (first,), acquired.readings)
    assert event["table_version"] == Lake(data_plane).version("readings")
    assert (event["first"], event["last"]) == ("2015-02-28 23:09:00+00:00", "2015-02-28 23:10:00+00:00")


def test_a_killed_worker_fails_the_run_and_loses_nothing(
    data_plane: Settings, monkeypatch: pytest.MonkeyPatch, publish: Publish
) -> None:
    """One of two processes is killed before it answers: the run says so, the next one brings what is missing."""
    publish(round_of_messages(20))
    send = Crew.send

    def send_and_kill(crew: Crew, messages: Messages, subjects: Named) -> None:
        children = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
        send(crew, messages, subjects)
        next(child for child in children if "tasks.crew" in child.cmdline()).kill()

    monkeypatch.setattr(Crew, "send", send_and_kill)
    with pytest.raises(StoreError, match="a partition's process ended with -9; run again"):
        in_processes(data_plane, 2, monkeypatch)
    acquire(data_plane)
    stored = Lake(data_plane).scan("readings").filter(pl.col("event_time").dt.minute() == 20)
    assert (
        stored.select(KEY).collect().n_unique() == stored.select(pl.len()).collect().item() == len(DEVICES) * READINGS
    )
    refused = Lake(data_plane).scan("quarantine").filter(pl.col("payload") == b"nonsense 20").collect()
    assert len(refused) == len(DEVICES)


def test_why_a_worker_could_not_work_is_told(data_plane: Settings) -> None:
    """Its own words come through: here it finds no credentials."""
    nowhere = data_plane.model_copy(update={"secrets_dir": data_plane.data_dir / "nowhere"})
    worker = _Worker.start(nowhere, (0,))
    with pytest.raises(StoreError, match="no credentials of object-store identity 'lake'"):
        worker.answer()
    assert worker.process.wait(30) == 0
