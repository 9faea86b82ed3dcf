"""Readings from a broker on the gateway itself, so that scoring needs no platform: MQTT 3.1.1, or NATS with JetStream.

Over MQTT a reading is acknowledged (QoS 1) once the prediction that it led to is durable. A broker lets so many
messages be open at a time (`max_inflight_messages` in Mosquitto, 20 by default), so a checkpoint follows each batch.
"""

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from fieldloop.domain.enrolment import AgentConfig, LocalReadings
from fieldloop.domain.errors import ServiceError
from fieldloop.edge import link
from fieldloop.edge.bucket import REQUEST_S
from fieldloop.edge.feed import TAKE, Batch, Delivery, Feed, Position
from fieldloop.edge.link import Link

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

KEEPALIVE_S: Final = 30
KEPT_BYTES: Final = 1 << 30  # of readings in a stream on the gateway that this agent had to make
_STREAM_THERE: Final = 10058  # JetStream's error codes: another stream of that name
_NO_CONSUMER: Final = 10014

logger = logging.getLogger(__name__)


async def open_source(config: AgentConfig, local: LocalReadings, folder: Path) -> "MqttFeed | Feed":
    """Connect to the gateway's broker.

    Raises:
        ServiceError: it does not answer or refuses, or its kind is unknown.
    """
    scheme = urlsplit(local.url).scheme
    if scheme in ("mqtt", "mqtts"):
        return await MqttFeed.open(config, local, folder)
    if scheme in ("nats", "tls"):
        return await _open_nats(config, local, folder)
    raise ServiceError(f"readings: expected a URL with mqtt, mqtts, nats or tls, got {local.url!r}: mend agent.json")


class MqttFeed:
    """A persistent session with an MQTT broker that acknowledges by hand; paho's thread reads, the event loop takes."""

    rest_s = 0.0
    eager = True

    def __init__(self, client: "Client", loop: asyncio.AbstractEventLoop, devices: Collection[str]) -> None:
        self._client = client
        self._loop = loop
        self._devices = devices
        self._queue: deque[tuple[MQTTMessage, float]] = deque()
        self._arrived = asyncio.Event()
        self._number = 0  # of the newest delivery, in this session
        self._open: deque[tuple[int, int, int]] = deque()  # number, message id, QoS of what is not acknowledged
        self.gone: str | None = None  # why the connection has ended

    @classmethod
    async def open(cls, config: AgentConfig, local: LocalReadings, folder: Path) -> "MqttFeed":
        """Connect and subscribe to the devices' readings.

        Raises:
            ServiceError: the broker does not answer or refuses, or paho-mqtt is not installed.
        """
        try:
            from paho.mqtt import client as mqtt
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as exc:
            raise ServiceError("readings over MQTT need paho-mqtt: pip install 'fieldloop[mqtt]'") from exc
        address = urlsplit(local.url)
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, f"fieldloop-{config.target}", clean_session=False, manual_ack=True,
            protocol=mqtt.MQTTv311, reconnect_on_failure=False,
        )  # fmt: skip
        if address.scheme == "mqtts":
            client.tls_set_context(_tls(local, folder))
        if local.user is not None:
            client.username_pw_set(local.user, _password(local, folder))
        feed = cls(client, asyncio.get_running_loop(), sorted(config.devices))
        await feed._begin(address.hostname or "", address.port or 1883)
        return feed

    async def take(self, position: Position, wait_s: float) -> Batch | None:
        """Wait for the next messages; None where none come in time.

        Raises:
            ServiceError: the connection has ended.
        """
        if not self._queue:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
        if not self._queue and self.gone is not None:
            raise ServiceError(self.gone)
        return self._batch(position)

    def acknowledge(self, reply: str) -> None:
        """Acknowledge all deliveries up to a number."""
        while self._open and self._open[0][0] <= int(reply):
            _, identifier, qos = self._open.popleft()
            self._client.ack(identifier, qos)

    def drop(self) -> None:
        """Nothing is ever missing here."""

    async def close(self, position: Position) -> Batch | None:
        """Leave what is on its way to the broker, which keeps it."""
        self._loop.call_later(0.2, self.end)  # after the last acknowledgements
        return None

    def end(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    async def _begin(self, host: str, port: int) -> None:
        consent: asyncio.Future[str | None] = self._loop.create_future()

        def answer(reason: str | None) -> None:
            if not consent.done():
                consent.set_result(reason)

        def connected(client: "Client", _: object, __: object, code: object, ___: object) -> None:
            if getattr(code, "is_failure", False):
                self._loop.call_soon_threadsafe(answer, str(code))
            else:
                client.subscribe([(f"devices/{device}/readings", 1) for device in self._devices])

        def subscribed(_: "Client", __: object, ___: int, codes: Sequence[object], ____: object) -> None:
            refused = [
                name for name, code in zip(self._devices, codes, strict=False) if getattr(code, "is_failure", False)
            ]
            reason = f"no right to read devices/{refused[0]}/readings" if refused else None
            self._loop.call_soon_threadsafe(answer, reason)

        def disconnected(_: "Client", __: object, ___: object, code: object, ____: object) -> None:
            self._loop.call_soon_threadsafe(self._lose, f"the gateway's broker closed the connection: {code}")

        def came(client: "Client", _: object, message: "MQTTMessage") -> None:
            if message.topic.split("/")[1] in self._devices:
                self._loop.call_soon_threadsafe(self._took, message, time.monotonic())
            else:  # the session outlives the moving of a device to another gateway
                client.unsubscribe(message.topic)
                client.ack(message.mid, message.qos)

        self._client.on_connect, self._client.on_subscribe = connected, subscribed
        self._client.on_disconnect, self._client.on_message = disconnected, came
        try:
            await asyncio.to_thread(self._client.connect, host, port, KEEPALIVE_S)
            self._client.loop_start()
            async with asyncio.timeout(REQUEST_S):
                reason = await consent
        except (OSError, TimeoutError) as exc:
            self.end()
            raise ServiceError(f"the gateway's broker at {host}:{port} cannot be used: {exc or 'no answer'}") from exc
        if reason is not None:
            self.end()
            raise ServiceError(f"the gateway's broker at {host}:{port} refuses: {reason}")

    def _lose(self, reason: str) -> None:
        self.gone = reason
        self._arrived.set()

    def _took(self, message: "MQTTMessage", received: float) -> None:
        self._queue.append((message, received))
        self._arrived.set()

    def _batch(self, position: Position) -> Batch | None:
        deliveries: list[Delivery] = []
        now_us = time.time_ns() // 1000
        for _ in range(min(len(self._queue), TAKE)):
            message, received = self._queue.popleft()
            self._number += 1
            self._open.append((self._number, message.mid, message.qos))
            place = Position(position.stream + len(deliveries) + 1, self._number, now_us)
            deliveries.append(
                Delivery(message.topic.split("/")[1], bytes(message.payload), place, "", received=received)
            )
        return Batch(deliveries, deliveries[-1].position, str(self._number)) if deliveries else None


async def _open_nats(config: AgentConfig, local: LocalReadings, folder: Path) -> Feed:
    """Connect to a NATS server on the gateway; its stream and consumer are made where they are not there."""
    tls = _tls(local, folder) if urlsplit(local.url).scheme == "tls" else None
    user: Mapping[str, str] = {}
    if local.user is not None:
        user = {"user": local.user, "pass": _password(local, folder)}
    opened = await link.connect(local.url, config.target, f"_INBOX.{config.target}", tls, user)
    try:
        await _prepare(opened, config)
    except BaseException:
        opened.close()
        raise
    return Feed(opened, config.target, config.redelivery_s)


async def _prepare(opened: Link, config: AgentConfig) -> None:
    """Make the stream and this target's consumer; of those that are there, only whose readings come is changed."""
    stream = {"name": "readings", "subjects": ["devices.*.readings"], "retention": "limits", "storage": "file",
              "max_bytes": KEPT_BYTES, "discard": "old", "num_replicas": 1}  # fmt: skip
    consumer = {
        "durable_name": config.target,
        "filter_subjects": [f"devices.{device}.readings" for device in sorted(config.devices)],
        "deliver_policy": "new", "ack_policy": "all", "ack_wait": int(config.redelivery_s * 1e9), "max_ack_pending": -1,
    }  # fmt: skip
    await _demand(opened, "$JS.API.STREAM.CREATE.readings", stream, _STREAM_THERE)
    held = await _demand(opened, f"$JS.API.CONSUMER.INFO.readings.{config.target}", {}, _NO_CONSUMER)
    if (there := held.get("config")) is not None:
        subjects = consumer["filter_subjects"]
        consumer = {k: v for k, v in there.items() if k != "filter_subject"} | {"filter_subjects": subjects}
    body = {"stream_name": "readings", "config": consumer}
    await _demand(opened, f"$JS.API.CONSUMER.DURABLE.CREATE.readings.{config.target}", body)


async def _demand(opened: Link, subject: str, body: Mapping[str, Any], bearable: int = 0) -> dict[str, Any]:
    """Return what JetStream answers; one code of an error may be borne.

    Raises:
        ServiceError: it refuses.
    """
    answer = await opened.request(subject, msgspec.json.encode(body), REQUEST_S)
    said = msgspec.json.decode(answer.data, type=dict[str, Any])
    error = said.get("error")
    if error and error.get("err_code") != bearable:
        raise ServiceError(f"the gateway's broker, {subject}: {error.get('description', error)}")
    return said


def _tls(local: LocalReadings, folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / local.ca) if local.ca else None)


def _password(local: LocalReadings, folder: Path) -> str:
    return (folder / local.password_file).read_text().strip() if local.password_file else ""
