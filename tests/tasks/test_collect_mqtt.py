"""An outside broker's messages into the lake: a real Mosquitto, both versions, acknowledged when safe."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fieldloop.domain.errors import SourceError, StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores.settings import Settings
from infra.local.authority import server_certificate
from infra.local.keys import write_private
from infra.local.ports import free_ports
from tasks.acquire import acquire
from tasks.collect import collect
from tests.tasks.servers import Mosquitto, mosquitto
from tests.tasks.sources import Workshop, workshop

SOURCE = """
kind: mqtt
device: {pattern: '^plant/(?P<device>[^/]+)/readings$'}
enrol: true
options:
  url: URL
  version: "VERSION"
  topics: [plant/#]
  client_id: NAME
  secret: mqtt
  quiet_s: 1
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("mosquitto")) as running:
        yield running


@pytest.fixture
def shop(data_plane: Settings, tmp_path: Path) -> Workshop:
    made = workshop(data_plane, tmp_path)
    made.profile(format_="json")
    (made.secrets / "sources").mkdir(exist_ok=True)
    write_private(made.secrets / "sources" / "mqtt", b"plant:secret")
    return made


def declare(shop: Workshop, name: str, url: str, version: str = "5") -> str:
    return shop.source(name, SOURCE.replace("URL", url).replace("VERSION", version).replace("NAME", name))


def address(outside: Mosquitto) -> str:
    return f"mqtt://127.0.0.1:{outside.port}"


def publish(outside: Mosquitto, messages: list[tuple[str, bytes]]) -> None:
    """Publish with QoS 1 and wait until the outside broker has them."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("plant", "secret")
    client.connect("127.0.0.1", outside.port)
    client.loop_start()
    for topic, payload in messages:
        client.publish(topic, payload, qos=1).wait_for_publish(30)
    client.disconnect()
    client.loop_stop()


def message(device: str, minute: int) -> tuple[str, bytes]:
    record = f'{{"at": "2020-01-01T{minute // 60:02}:{minute % 60:02}:00Z", "level": {minute}}}'
    return f"plant/{device}/readings", record.encode()


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_what_came_while_nobody_listened_lands_once(version: str, shop: Workshop, outside: Mosquitto) -> None:
    """The session keeps messages between runs, over a restart of the outside broker too; they land by acquisition."""
    name = f"mqtt-{version[0]}"
    source, device = declare(shop, name, address(outside), version), f"{name}-1"
    assert collect(shop, source).forwarded == 0
    publish(outside, [message(device, minute) for minute in range(20)])
    outside.stop()
    outside.start()
    done = collect(shop, source)
    assert (done.forwarded, done.enrolled, done.quarantined) == (20, (device,), 0)
    assert collect(shop, source).forwarded == 0
    acquire(shop)
    stored = shop.stored(device)
    assert stored["value"].to_list() == list(range(20))
    assert stored["sequence"].min() > 0


def test_a_topic_without_device_goes_to_quarantine(shop: Workshop, outside: Mosquitto) -> None:
    """Its message is kept and acknowledged, so that it does not come for ever."""
    source = declare(shop, "mqtt-stray", address(outside))
    collect(shop, source)
    publish(outside, [("plant/status", b"up"), message("mqtt-stray-1", 0)])
    done = collect(shop, source)
    assert (done.forwarded, done.quarantined) == (1, 1)
    (row,) = shop.refused(source).to_dicts()
    assert (row["subject"], row["reason"]) == ("sources/mqtt-stray/plant/status", Reason.UNKNOWN_DEVICE)
    assert row["payload"] == b"up"


def test_killed_before_it_acknowledged_nothing_is_lost_or_twice(shop: Workshop, outside: Mosquitto) -> None:
    """Messages that were stored and not acknowledged outside come again, and the stream drops them."""
    source = declare(shop, "mqtt-killed", address(outside))
    collect(shop, source)
    acquire(shop)
    publish(outside, [message("mqtt-killed-1", minute) for minute in range(50)])
    code = (
        "import sys, os, signal; from pathlib import Path; from fieldloop.stores.sources import mqtt; "
        "from tests.tasks.sources import Workshop; from tasks import collect; "
        "mqtt._Session.acknowledge = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        "collect.collect(Workshop(folder=Path(sys.argv[1])), 'mqtt-killed')"
    )
    environment = {**os.environ, **shop.environment(), "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", code, str(shop.folder)], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    before = acquire(shop)
    assert before.messages > 0
    assert collect(shop, source).forwarded == 50
    after = acquire(shop)
    assert before.messages + after.messages == 50
    assert len(shop.stored("mqtt-killed-1")) == 50


def test_tls_holds_both_ends_to_their_names(shop: Workshop, tmp_path: Path) -> None:
    """With the authority that signed the broker's certificate it connects, without it it does not."""
    (tmp_path / "tls").mkdir()
    own = server_certificate(shop)
    with mosquitto(tmp_path / "tls", own) as outside:
        url = f"mqtts://127.0.0.1:{outside.port}"
        source = declare(shop, "mqtt-tls", url)
        with pytest.raises(SourceError, match="no trust in the broker"):
            collect(shop, source)
        shop.source(
            "mqtt-tls", (SOURCE + f"  ca: {own.ca}\n").replace("URL", url).replace("VERSION", "5").replace("NAME", "t")
        )
        assert collect(shop, source).forwarded == 0


def test_refusals_say_what_is_wrong(shop: Workshop, outside: Mosquitto) -> None:
    """Wrong password, no broker, credentials in the open."""
    write_private(shop.secrets / "sources" / "mqtt", b"plant:wrong")
    with pytest.raises(SourceError, match="refuses the connection: Not authorized") as refused:
        collect(shop, declare(shop, "mqtt-wrong", address(outside)))
    assert "wrong" not in str(refused.value).removeprefix("mqtt-wrong")
    with pytest.raises(StoreError, match="does not answer"):
        collect(shop, declare(shop, "mqtt-away", f"mqtt://127.0.0.1:{free_ports(1)[0]}"))
    with pytest.raises(SourceError, match="credentials go over mqtts alone"):
        collect(shop, declare(shop, "mqtt-open", "mqtt://broker.example.org"))
