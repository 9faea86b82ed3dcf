"""The broker's rights, through the real listeners: a device is itself, an agent is itself, a stranger is nobody."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import nats as client
import nats.errors
import paho.mqtt.client as mqtt
import pytest
from nats.aio.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from fieldloop.domain.errors import ServiceError
from fieldloop.stores import broker
from fieldloop.stores.settings import Certificate, Settings
from infra.local.authority import make_authority
from infra.local.identities import enrol_devices, enrol_targets, users_file
from infra.local.keys import make_secrets
from tests.infra.strangers import forge

WAIT_S = 10.0


@pytest.fixture(scope="module")
def enrolled(nats: Settings) -> Settings:
    """A broker that knows two devices and two targets."""
    enrol_devices(nats, ["R80711", "R80721"])
    enrol_targets(nats, {"gate-1": {}, "gate-2": {}})
    return nats


def test_a_device_publishes_its_own_readings(enrolled: Settings) -> None:
    """They lie in the stream, under the device's name."""
    before = _readings(enrolled, "R80711")
    _publish(enrolled, "R80711", "devices/R80711/readings", b"own")
    assert _readings(enrolled, "R80711") == before + 1


@pytest.mark.parametrize("topic", ["devices/R80721/readings", "devices/R80711/other", "predictions/gate-1"])
def test_a_device_publishes_nothing_else(enrolled: Settings, topic: str) -> None:
    """Not as another device, not under another subject: the broker drops it."""
    before = {name: _readings(enrolled, name) for name in ("R80711", "R80721")} | {"all": _total(enrolled)}
    _publish(enrolled, "R80711", topic, b"forged")
    _publish(enrolled, "R80711", "devices/R80711/readings", b"a later one, so that the first was decided upon")
    assert _readings(enrolled, "R80721") == before["R80721"]
    assert _readings(enrolled, "R80711") == before["R80711"] + 1
    assert _total(enrolled) == before["all"] + 1


def test_a_device_that_gives_anothers_name_stays_itself(enrolled: Settings) -> None:
    """User name and client identifier are anybody's to choose; the certificate says who it is."""
    before = {name: _readings(enrolled, name) for name in ("R80711", "R80721")}
    certificate = enrolled.certificate("device", "R80711")
    poser = _device(enrolled, certificate, "R80721", "CN=R80721,O=device")
    poser.publish("devices/R80721/readings", b"posing", qos=1).wait_for_publish(WAIT_S)
    poser.publish("devices/R80711/readings", b"own", qos=1).wait_for_publish(WAIT_S)
    poser.disconnect()
    poser.loop_stop()
    after = {name: _readings(enrolled, name) for name in ("R80711", "R80721")}
    assert after == {"R80711": before["R80711"] + 1, "R80721": before["R80721"]}


@pytest.mark.parametrize("kind", ["target", "platform"])
def test_a_certificate_counts_only_for_its_kind(enrolled: Settings, kind: str) -> None:
    """A device that bears a target's or the platform's name is a device still."""
    enrol_devices(enrolled, ["gate-1", "platform"])
    name = "gate-1" if kind == "target" else "platform"
    with pytest.raises(nats.errors.Error):
        asyncio.run(_connected(enrolled, enrolled.certificate("device", name), _nothing))


def test_a_device_with_a_certificate_of_another_authority_is_refused(
    enrolled: Settings, free_settings: Callable[..., Settings]
) -> None:
    """The name of a device that is enrolled, signed by somebody else."""
    other = free_settings()
    make_secrets(other)
    make_authority(other)
    forged = forge(other, "device", "R80711")
    before = _total(enrolled)
    ca = enrolled.certificate("device", "R80711").ca
    with pytest.raises(OSError, match=r"(?i)ssl|reset|closed|certificate|pipe|EOF"):
        _refuse_mqtt(enrolled, Certificate(forged.cert, forged.key, ca))
    assert _total(enrolled) == before


def test_a_device_hears_nothing(enrolled: Settings) -> None:
    """A subscription, to its own topic even, is refused."""
    granted: list[int] = []
    done = threading.Event()

    def on_subscribe(_c: mqtt.Client, _u: object, _m: int, codes: list[mqtt.ReasonCode], _p: object) -> None:
        granted.extend(code.value for code in codes)
        done.set()

    device = _device(enrolled, enrolled.certificate("device", "R80711"))
    device.on_subscribe = on_subscribe
    device.subscribe("devices/R80711/readings", qos=1)
    done.wait(WAIT_S)
    device.disconnect()
    device.loop_stop()
    assert granted == [128]


def test_a_device_may_not_use_the_nats_listener(enrolled: Settings) -> None:
    """Its certificate is for MQTT."""
    with pytest.raises(nats.errors.Error):
        asyncio.run(_connected(enrolled, enrolled.certificate("device", "R80711"), _nothing))


def test_an_agent_reads_and_reports_as_itself(enrolled: Settings) -> None:
    """It publishes its predictions and its reported state, and reads its desired state without a consumer."""

    async def as_agent(agent: Client) -> None:
        streams = agent.jetstream()
        await streams.publish("predictions.gate-1", b"p")
        await streams.publish("$KV.reported.gate-1", b"r")
        reply = await agent.request("$JS.API.DIRECT.GET.KV_desired.$KV.desired.gate-1", b"", timeout=WAIT_S)
        assert reply.headers is not None

    assert asyncio.run(_connected(enrolled, enrolled.certificate("target", "gate-1"), as_agent)) == []


def test_an_agent_is_told_of_its_desired_state_and_of_no_others(enrolled: Settings) -> None:
    """Once it is written."""
    heard: list[tuple[str, bytes]] = []

    async def listen(agent: Client) -> None:
        subscription = await agent.subscribe("notice.$KV.desired.gate-1")
        await agent.flush()
        async with broker.platform(enrolled) as (_, streams):
            await streams.publish("$KV.desired.gate-2", b"other")
            await streams.publish("$KV.desired.gate-1", b"own")
        message = await subscription.next_msg(WAIT_S)
        heard.append((message.subject, message.data))

    assert asyncio.run(_connected(enrolled, enrolled.certificate("target", "gate-1"), listen)) == []
    assert heard == [("notice.$KV.desired.gate-1", b"own")]
    asyncio.run(_purge(enrolled, "desired"))


@pytest.mark.parametrize(
    "subject",
    [
        "predictions.gate-2",
        "$KV.reported.gate-2",
        "$KV.desired.gate-1",
        "$KV.releases.root",
        "devices.R80711.readings",
        "$JS.API.DIRECT.GET.KV_desired.$KV.desired.gate-2",
        "$JS.API.CONSUMER.MSG.NEXT.readings.gate-2",
        "$JS.API.CONSUMER.CREATE.readings",
        "$JS.API.STREAM.DELETE.readings",
        "$JS.API.STREAM.INFO.readings",
    ],
)
def test_an_agent_publishes_nothing_else(enrolled: Settings, subject: str) -> None:
    """Nothing of another target, no desired state, no release, no stream."""

    async def publish(agent: Client) -> None:
        await agent.publish(subject, b"")
        await _refused(agent)

    denied = asyncio.run(_connected(enrolled, enrolled.certificate("target", "gate-1"), publish))
    assert [subject.lower() in str(error).lower() for error in denied] == [True]


@pytest.mark.parametrize(
    ("stream", "subject"),
    [
        ("KV_desired", "$KV.desired.gate-2"),
        ("KV_reported", "$KV.reported.gate-2"),
        ("KV_rollouts", "$KV.rollouts.head"),
        ("KV_releases", "$KV.releases.root"),
        ("predictions", "predictions.gate-2"),
        ("alerts", "alerts.gate-2"),
        ("readings", "devices.gate-2.readings"),
    ],
)
def test_an_agent_has_nothing_of_others_written_by_an_answer(enrolled: Settings, stream: str, subject: str) -> None:
    """It reads its own message, or has one acknowledged, and names another's subject as the place for the answer."""
    get = "$JS.API.DIRECT.GET.predictions.predictions.gate-1"

    async def act(agent: Client) -> None:
        await agent.publish("predictions.gate-1", b"forged", reply=subject)
        await agent.publish(get, b"", reply=subject)
        await agent.flush()
        for reply in (f"_R_.entrance.{subject}", "_R_.entrance.$KV.desired.gate-1"):
            with contextlib.suppress(nats.errors.Error):
                await agent.publish(get, b"", reply=reply)
                await agent.flush()

    asyncio.run(_connected(enrolled, enrolled.certificate("target", "gate-1"), act))
    assert subject not in asyncio.run(_subjects(enrolled, stream))
    assert "$KV.desired.gate-1" not in asyncio.run(_subjects(enrolled, "KV_desired"))
    assert "predictions.gate-1" in asyncio.run(_subjects(enrolled, "predictions"))


@pytest.mark.parametrize(
    "subject", [">", "devices.>", "predictions.>", "_INBOX.gate-2.>", "$KV.desired.gate-1", "notice.$KV.desired.gate-2"]
)
def test_an_agent_hears_nothing_else(enrolled: Settings, subject: str) -> None:
    """Neither others' answers nor others' desired state."""

    async def listen(agent: Client) -> None:
        await agent.subscribe(subject)
        await _refused(agent)

    denied = asyncio.run(_connected(enrolled, enrolled.certificate("target", "gate-1"), listen))
    assert [subject.lower() in str(error).lower() for error in denied] == [True]


def test_a_certificate_that_is_not_enrolled_is_refused(enrolled: Settings) -> None:
    """The authority's signature alone opens nothing."""
    stranger = forge(enrolled, "target", "stranger")
    with pytest.raises(nats.errors.Error):
        asyncio.run(_connected(enrolled, stranger, _nothing))


def test_a_certificate_of_another_authority_is_refused(
    enrolled: Settings, free_settings: Callable[..., Settings]
) -> None:
    """Even with the very same name."""
    other = free_settings()
    make_secrets(other)
    make_authority(other)
    forged = forge(other, "target", "gate-1")
    with pytest.raises((nats.errors.Error, OSError)):
        asyncio.run(
            _connected(enrolled, Certificate(forged.cert, forged.key, enrolled.certificate("target", "x").ca), _nothing)
        )


def test_a_client_without_a_certificate_is_refused(enrolled: Settings) -> None:
    """TLS is mutual."""
    context = ssl.create_default_context(cafile=str(enrolled.certificate("target", "gate-1").ca))
    with pytest.raises((nats.errors.Error, OSError)):
        asyncio.run(_with_context(enrolled, context, "x", _nothing))


def test_enrolling_again_changes_nothing(enrolled: Settings) -> None:
    """Keys, certificates and users stay as they are."""
    before = _contents(enrolled)
    enrol_devices(enrolled, ["R80711"])
    enrol_targets(enrolled, {"gate-1": {}, "gate-2": {}})
    assert _contents(enrolled) == before


@pytest.mark.parametrize("name", ["", "a.b", "a>", "*", "a b", "../x", "ü", "a" * 64])
def test_a_name_that_could_widen_a_right_is_refused(enrolled: Settings, name: str) -> None:
    """A name is one token of a subject, and of a path."""
    with pytest.raises(ServiceError, match="expected letters, digits"):
        enrol_devices(enrolled, [name])


def test_a_payload_of_two_megabytes_is_taken(enrolled: Settings) -> None:
    """A device that were refused would repeat it for ever; what is wrong with it is acquisition's to say."""
    before = _readings(enrolled, "R80711")
    _publish(enrolled, "R80711", "devices/R80711/readings", bytes(2 * 10**6))
    assert _readings(enrolled, "R80711") == before + 1


async def _refused(agent: Client) -> None:
    """Wait for the broker's refusal, which may come after its answer to a flush."""
    await agent.flush()
    async with asyncio.timeout(WAIT_S):
        while agent.last_error is None:
            await asyncio.sleep(0.01)


async def _nothing(_: Client) -> None:
    return


async def _connected(settings: Settings, certificate: Certificate, act: Callable[[Client], object]) -> list[Exception]:
    """Connect with a certificate, act, and return the errors that the broker sent."""
    context = ssl.create_default_context(cafile=str(certificate.ca))
    context.load_cert_chain(certificate.cert, certificate.key)
    return await _with_context(settings, context, certificate.cert.parent.name, act)


async def _with_context(
    settings: Settings, context: ssl.SSLContext, name: str, act: Callable[[Client], object]
) -> list[Exception]:
    errors: list[Exception] = []

    async def keep(error: Exception) -> None:
        if isinstance(error, nats.errors.Error):  # TLS complains about every close
            errors.append(error)

    agent = await client.connect(
        settings.nats_endpoint,
        tls=context,
        inbox_prefix=f"_INBOX.{name}".encode(),
        allow_reconnect=False,
        max_reconnect_attempts=0,
        connect_timeout=5,
        error_cb=keep,
    )
    try:
        await act(agent)  # type: ignore[misc]
        await agent.flush()
    finally:
        await agent.close()
    return errors


def _refuse_mqtt(settings: Settings, certificate: Certificate) -> None:
    """Open a connection to the MQTT listener; with TLS 1.3 a refused certificate shows at the first read."""
    context = ssl.create_default_context(cafile=str(certificate.ca))
    context.load_cert_chain(certificate.cert, certificate.key)
    with (
        socket.create_connection((settings.host, settings.mqtt_port), timeout=WAIT_S) as plain,
        context.wrap_socket(plain, server_hostname=settings.host) as secure,
    ):
        secure.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x05\x00\x02me")  # CONNECT
        answer = secure.recv(4)
        raise AssertionError(f"expected the connection to be refused, got {answer!r}")


def _device(
    settings: Settings, certificate: Certificate, client_id: str | None = None, user: str | None = None
) -> mqtt.Client:
    device = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id or f"test-{certificate.cert.parent.name}")
    if user is not None:
        device.username_pw_set(user)
    device.tls_set(str(certificate.ca), str(certificate.cert), str(certificate.key))
    device.connect(settings.host, settings.mqtt_port)
    device.loop_start()
    return device


def _publish(settings: Settings, name: str, topic: str, payload: bytes) -> None:
    device = _device(settings, settings.certificate("device", name))
    device.publish(topic, payload, qos=1).wait_for_publish(WAIT_S)
    device.disconnect()
    device.loop_stop()


def _readings(settings: Settings, device: str) -> int:
    return asyncio.run(_count(settings, f"devices.{device}.readings"))


def _total(settings: Settings) -> int:
    return asyncio.run(_count(settings, ">"))


async def _count(settings: Settings, subject: str) -> int:
    async with broker.platform(settings) as (_, streams):
        infos = [await streams.stream_info(name, subjects_filter=subject) for name in ("readings", "predictions")]
    return sum(sum((info.state.subjects or {}).values()) for info in infos)


async def _subjects(settings: Settings, stream: str) -> dict[str, int]:
    async with broker.platform(settings) as (_, streams):
        return (await streams.stream_info(stream, subjects_filter=">")).state.subjects or {}


async def _purge(settings: Settings, bucket: str) -> None:
    async with broker.platform(settings) as (_, streams):
        await streams.purge_stream(f"KV_{bucket}")


def _contents(settings: Settings) -> dict[Path, bytes]:
    paths = [users_file(settings), *(settings.data_dir / "pki").rglob("*.pem")]
    return {path: path.read_bytes() for path in paths}
