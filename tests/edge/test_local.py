"""Readings from a broker on the gateway: scoring goes on without the platform, and nothing is lost on the way there."""

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nats
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from typer.testing import CliRunner

from fieldloop.cli.main import app
from fieldloop.stores import fleet
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from infra.local.ports import free_ports
from infra.local.supervisor import answers
from tests.edge.targets import Gateway, make_release, payload, poll

STEPS = 80


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    """Start Mosquitto on a free port of the loopback; it keeps the sessions of clients that are away."""
    binary = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if binary is None:
        pytest.skip("no mosquitto here: apt-get install mosquitto")
    (port,) = free_ports(1)
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 10000\n")
    yield from _running([binary, "-c", str(config)], port)


@pytest.fixture
def leaf(tmp_path: Path) -> Iterator[int]:
    """Start a NATS server as a gateway may have one."""
    (port,) = free_ports(1)
    binary = str(Path(sys.executable).with_name("nats-server"))
    options = ["--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", str(tmp_path / "leaf")]
    yield from _running([binary, *options], port)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[int]:
    """Start a broker with MQTT whose user may read nothing of devices."""
    port, mqtt_port = free_ports(2)
    rights = '{user: gw, password: secret, permissions: {subscribe: {deny: "devices.>"}}}'
    (tmp_path / "narrow.conf").write_text(
        f"listen: 127.0.0.1:{port}\nserver_name: narrow\njetstream {{store_dir: {tmp_path / 'narrow'}}}\n"
        f"mqtt {{listen: 127.0.0.1:{mqtt_port}}}\nauthorization {{users: [{rights}]}}\n"
    )
    binary = str(Path(sys.executable).with_name("nats-server"))
    yield from _running([binary, "--config", str(tmp_path / "narrow.conf")], mqtt_port)


def test_over_mqtt_scoring_goes_on_without_the_platform(gateway: Gateway, mosquitto: int) -> None:
    """Killed in between, too; once the platform is back, all predictions are there, each once."""
    release = make_release(model="mqtt")
    gateway.configure(readings={"url": f"mqtt://127.0.0.1:{mosquitto}"}, heartbeat_s=0.2)
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    _await_session(gateway)
    _publish_mqtt(gateway, mosquitto, range(10))
    gateway.await_rows(6)
    home = gateway.config.read_bytes()
    gateway.kill(signal.SIGTERM)
    gateway.configure(broker="tls://127.0.0.1:1")
    gateway.start()
    _publish_mqtt(gateway, mosquitto, range(10, STEPS // 2))
    _await_health(gateway, b'"scored":%d,' % (STEPS // 2 - 10))
    assert b'"connected":false' in gateway.ask("/health")[1]
    gateway.kill()
    _publish_mqtt(gateway, mosquitto, range(STEPS // 2, STEPS))
    gateway.start()
    _await_health(gateway, b'"scored":%d,' % (STEPS // 2))
    gateway.kill()
    gateway.config.write_bytes(home)
    gateway.start()
    rows = gateway.await_rows(STEPS - 4)
    assert [end // 60_000_000 - 1000 for end in sorted(rows)] == list(range(3, STEPS - 1))
    assert sum(len(message.columns()[0]) for message in gateway.predictions()) == STEPS - 4


def test_a_broker_that_lets_it_read_nothing_is_named(gateway: Gateway, narrow: int) -> None:
    """Else it would wait for ever for readings that it has no right to."""
    (gateway.config.parent / "word").write_text("secret")
    gateway.configure(readings={"url": f"mqtt://127.0.0.1:{narrow}", "user": "gw", "password_file": "word"})
    gateway.start()
    said = f"refuses: no right to read devices/{gateway.device}/readings"
    poll(lambda: True if said in gateway.log else None, lambda: gateway.log)


def test_over_nats_the_gateways_own_server_needs_no_preparation(gateway: Gateway, leaf: int) -> None:
    """The agent makes stream and consumer; killed, it goes on where it was."""
    release = make_release(model="leaf")
    gateway.configure(readings={"url": f"nats://127.0.0.1:{leaf}"})
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    _await_session(gateway)
    _publish_nats(gateway, leaf, range(10))
    gateway.await_rows(6)
    gateway.kill()
    _publish_nats(gateway, leaf, range(10, 20))
    gateway.start()
    assert len(gateway.await_rows(16)) == 16


def test_what_a_full_spool_had_no_room_for_is_reported_as_a_gap(gateway: Gateway, leaf: int) -> None:
    """Away for longer than there is room: what was kept comes, and the platform is told what is missing, and when."""
    release = make_release(model="gap")
    gateway.configure(readings={"url": f"nats://127.0.0.1:{leaf}"}, spool_bytes=1000)
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    _await_session(gateway)
    home = gateway.config.read_bytes()
    gateway.kill(signal.SIGTERM)
    gateway.configure(broker="tls://127.0.0.1:1")
    gateway.start()
    for step in range(0, STEPS, 10):
        _publish_nats(gateway, leaf, range(step, step + 10))
        _await_health(gateway, b'"scored":%d,' % (step + 6))
    gateway.kill(signal.SIGTERM)
    gateway.config.write_bytes(home)
    gateway.start()
    spool = gateway.await_report(lambda report: report.spool.dropped > 0 and report.spool.waiting == 0).spool
    assert 6 <= len(gateway.rows()) < STEPS - 4
    assert 0 < sum(gap.count for gap in spool.gaps) <= spool.dropped
    assert all(gap.from_us <= gap.until_us for gap in spool.gaps)


def test_over_mqtt_an_agent_is_told_of_other_devices(
    gateway: Gateway, mosquitto: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's session outlives the move."""
    gateway.configure(readings={"url": f"mqtt://127.0.0.1:{mosquitto}"})
    _move(gateway, lambda device, steps: _publish_mqtt(gateway, mosquitto, steps, device), monkeypatch)


def test_over_nats_an_agent_is_told_of_other_devices(
    gateway: Gateway, leaf: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer that it made for the devices of before is there already."""
    gateway.configure(readings={"url": f"nats://127.0.0.1:{leaf}"})
    _move(gateway, lambda device, steps: _publish_nats(gateway, leaf, steps, device), monkeypatch)


def _move(gateway: Gateway, publish: Callable[[str, range], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the target another device while it scores: it goes on with that one, and counts the other's as no error."""
    settings, lake, before, after = gateway.settings, Lake(gateway.settings), gateway.device, f"{gateway.device}-next"
    release = make_release(model="moving")
    fleet.add_devices(lake, [before, after], "toy")
    fleet.add_targets(settings, lake, [Target(gateway.target, (before,))])
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    _await_session(gateway)
    publish(before, range(10))
    gateway.await_rows(6)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    CliRunner().invoke(app, ["target", "add", gateway.target, "--device", after], catch_exceptions=False)
    poll(lambda: gateway.log.count("readings come from") > 1 or None, lambda: gateway.log)
    publish(before, range(10, 20))
    publish(after, range(10))
    poll(
        lambda: {d for m in gateway.predictions() for d, _ in m.devices} == {before, after} or None, lambda: gateway.log
    )
    _await_health(gateway, b'"scored":12,')
    assert b'"errors":0,' in gateway.ask("/health")[1]
    fleet.remove_targets(settings, lake, [gateway.target])


def _publish_nats(gateway: Gateway, port: int, steps: range, device: str | None = None) -> None:
    async def publish() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        for step in steps:
            subject = f"devices.{device or gateway.device}.readings"
            await client.jetstream().publish(subject, payload(range(step, step + 1)))
        await client.close()

    asyncio.run(publish())


def _publish_mqtt(gateway: Gateway, port: int, steps: range, device: str | None = None) -> None:
    """Publish a message a step with QoS 1, and wait until the broker has them."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "device", protocol=mqtt.MQTTv311)
    client.connect("127.0.0.1", port)
    client.loop_start()
    topic = f"devices/{device or gateway.device}/readings"
    sent = [client.publish(topic, payload(range(s, s + 1)), qos=1) for s in steps]
    for each in sent:
        each.wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def _await_session(gateway: Gateway) -> None:
    poll(lambda: True if "readings come from" in gateway.log else None, lambda: gateway.log)


def _await_health(gateway: Gateway, part: bytes) -> None:
    def look() -> bool | None:
        try:
            return True if part in gateway.ask("/health")[1] else None
        except OSError:
            return None

    poll(look, lambda: f"{part!r} not in {gateway.ask('/health')}; {gateway.log}")


def _running(command: list[str], port: int) -> Iterator[int]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        poll(lambda: answers(f"tcp://127.0.0.1:{port}") or None, lambda: f"{command[0]} does not answer")
        yield port
    finally:
        server.kill()
        server.wait(10)
