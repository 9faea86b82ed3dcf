"""Simulated turbines against the real broker, and against the source itself."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from fieldloop.stores import broker as broker_store
from fieldloop.stores.settings import Settings
from infra.local import broker as broker_service
from infra.local import platform as platform_services
from infra.local import signer
from infra.local.authority import make_authority
from infra.local.identities import enrol_devices
from infra.local.stack import start_stack, stop_stack
from infra.local.supervisor import answers
from infra.local.turbines import Broker, ReplayError, payloads, replay, source, source_readings
from tests.infra.strangers import forge

DEVICES = ["R80711", "R80721", "R80736", "R80790"]
START = datetime(2014, 1, 1, tzinfo=UTC)
UNTIL = datetime(2016, 1, 1, tzinfo=UTC)
DAYS = datetime(2014, 1, 8, tzinfo=UTC)
MONTHS = datetime(2014, 6, 1, tzinfo=UTC)
START_TIMEOUT_S = 10


def test_the_source_has_the_distinct_readings_that_a_lake_must_hold() -> None:
    """Two years hold 2,925,041 distinct readings; 48 times of a device are there twice."""
    assert source_readings(START, UNTIL).height == 2_925_041


def test_payloads_hold_every_cell_that_has_a_value() -> None:
    """70,080 messages of one hour each carry all 420,480 records and their 2,925,377 values."""
    messages = payloads(DEVICES, START, UNTIL)
    assert (messages.height, messages["records"].sum(), messages["readings"].sum()) == (70_080, 420_480, 2_925_377)


def test_payloads_repeat_the_source_digit_by_digit() -> None:
    """Read back with exact decimals, the records are the CSV's, in the file's order, with null for an empty cell."""
    for device in DEVICES:
        sent = payloads([device], START, DAYS)["payload"].to_list()
        records = [record for payload in sent for record in json.loads(payload, parse_float=Decimal)]
        wanted = source(START, DAYS).filter(pl.col("Wind_turbine_name") == device).drop("event_time").to_dicts()
        assert [{k: None if v is None else str(v) for k, v in record.items()} for record in records] == wanted


def test_a_span_is_cut_by_event_time_not_by_local_time() -> None:
    """Offsets of +01:00 and +02:00 are both taken to UTC before the span is cut."""
    day = datetime(2014, 7, 1, tzinfo=UTC), datetime(2014, 7, 2, tzinfo=UTC)
    frame = source(*day)
    assert frame.height == 4 * 144
    assert frame["Date_time"].min() == "2014-07-01T02:00:00+02:00"


def test_turbines_publish_a_week_that_the_broker_keeps_in_order(nats: Settings) -> None:
    """After a replay the stream holds each device's payloads, once and in order."""
    enrol_devices(nats, DEVICES)
    first = _last_sequence(nats) + 1
    summary = replay(_broker(nats), DEVICES, START, DAYS, rate=None)
    messages = payloads(DEVICES, START, DAYS)
    assert (summary.messages, summary.records) == (messages.height, messages["records"].sum())
    kept = _stream(nats, first, messages.height)
    for device in DEVICES:
        sent = messages.filter(pl.col("device") == device)["payload"].to_list()
        assert [data for subject, data in kept if subject == f"devices.{device}.readings"] == sent


def test_the_command_line_ends_with_a_summary_and_knows_nothing_of_the_platform(nats: Settings) -> None:
    """The process exits 0, its last line is JSON, and it has imported nothing of fieldloop."""
    enrol_devices(nats, DEVICES[:1])
    code = (
        "import sys; from infra.local import turbines; turbines.main(); "
        "sys.exit(any(name.startswith(('fieldloop', 'tasks', 'expectations')) for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *_arguments(nats, DEVICES[:1])], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])["messages"] == 24


def test_a_rate_holds_the_replay_back(nats: Settings) -> None:
    """A day of one turbine at 100 records a second takes more than a second of its own clock."""
    enrol_devices(nats, DEVICES[:1])
    summary = replay(_broker(nats), DEVICES[:1], START, datetime(2014, 1, 2, tzinfo=UTC), rate=100)
    assert summary.seconds > 1


def test_a_device_without_certificate_is_told_which_file_is_missing(nats: Settings, tmp_path: Path) -> None:
    """The process exits 1 with one line that names the file."""
    arguments = [*_arguments(nats, ["R80711"]), "--certificates", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "infra.local.turbines", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    missing = tmp_path / "R80711" / "identity.pem"
    assert done.stderr.strip() == f"turbines: R80711: no file {missing}; enrol the device first"


def test_a_device_that_is_not_enrolled_is_refused_with_the_brokers_reason(nats: Settings, tmp_path: Path) -> None:
    """A certificate of the right authority whose name the broker does not know ends the replay before it starts."""
    stranger = forge(nats, "device", "stranger").cert.parent
    (tmp_path / "R80711").symlink_to(stranger)
    endpoint = Broker(nats.host, nats.mqtt_port, tmp_path, nats.certificate("device", "stranger").ca)
    with pytest.raises(ReplayError, match=r"R80711: the broker refuses it: .*is the certificate in .* enrolled"):
        replay(endpoint, ["R80711"], START, DAYS, rate=None)


def test_a_device_that_the_source_does_not_have_is_named() -> None:
    """The message lists the devices that there are."""
    with pytest.raises(ReplayError, match="no records of R1 in the span; there are R80711, R80721"):
        payloads(["R1"], START, DAYS)


def test_turbines_go_on_after_the_broker_was_killed(free_settings: Callable[..., Settings]) -> None:
    """Five months of two turbines lose nothing when the broker is killed with -9 in the middle and started again."""
    settings = free_settings()
    make_authority(settings)
    start_stack(settings, platform_services.PLATFORM, [broker_service.spec(settings), signer.spec(settings)])
    enrol_devices(settings, DEVICES[:2])
    stop_stack(settings, platform_services.PLATFORM)
    argv = broker_service.spec(settings).argv
    with _process(argv, settings) as first:
        platform_services.prepare_broker(settings)
        done: list[int] = []
        thread = threading.Thread(
            target=lambda: done.append(replay(_broker(settings), DEVICES[:2], START, MONTHS, 50_000).messages)
        )
        thread.start()
        _until(lambda: _last_sequence(settings) > 500)
        first.kill()
        first.wait()
        assert thread.is_alive()
    with _process(argv, settings):
        thread.join(60)
        kept = _stream(settings, 1, _last_sequence(settings))
    messages = payloads(DEVICES[:2], START, MONTHS)
    assert done == [messages.height]
    assert {data for _, data in kept} == set(messages["payload"])


def _broker(settings: Settings) -> Broker:
    certificate = settings.certificate("device", "R80711")
    return Broker(settings.host, settings.mqtt_port, certificate.cert.parents[1], certificate.ca)


def _arguments(settings: Settings, devices: list[str]) -> list[str]:
    span = ["--from", "2014-01-01", "--until", "2014-01-02"]
    ca = settings.certificate("device", "R80711").ca
    where = ["--certificates", str(ca.parent / "device"), "--ca", str(ca), "--port", str(settings.mqtt_port)]
    return ["--devices", ",".join(devices), *where, *span]


def _last_sequence(settings: Settings) -> int:
    async def ask() -> int:
        async with broker_store.platform(settings) as (_, js):
            return (await js.stream_info(broker_store.READINGS)).state.last_seq

    return asyncio.run(ask())


def _stream(settings: Settings, first: int, count: int) -> list[tuple[str, str]]:
    """Read subject and payload of messages from a position on."""

    async def read() -> list[tuple[str, str]]:
        async with broker_store.platform(settings) as (_, js):
            config = ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=first, ack_policy=AckPolicy.NONE
            )
            subscription = await js.pull_subscribe("devices.*.readings", stream=broker_store.READINGS, config=config)
            found: list[tuple[str, str]] = []
            while len(found) < count:
                batch = await subscription.fetch(min(500, count - len(found)), timeout=5)
                found += [(message.subject, message.data.decode()) for message in batch]
            return found

    return asyncio.run(read())


@contextmanager
def _process(argv: tuple[str, ...], settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run a broker that a test may kill."""
    with (settings.data_dir / "test-nats.log").open("ab") as log:
        process = subprocess.Popen(argv, cwd=settings.data_dir, stdout=log, stderr=log)
    try:
        _until(lambda: _answers(settings))
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(settings: Settings) -> bool:
    return answers(f"tcp://{settings.host}:{settings.nats_port}")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "the broker did not get there in time"
        time.sleep(0.02)
