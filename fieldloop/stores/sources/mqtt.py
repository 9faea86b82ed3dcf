"""An outside MQTT broker, 3.1.1 or 5: its messages go into the platform's own stream, and are acknowledged after that.

From there they are like any other device's: acquired, watched, followed by gateways (docs/adr/0011). The session at the
outside broker is a lasting one with QoS 1, so that it keeps what comes between two runs. What was stored and not yet
acknowledged when a run was killed comes again, and the stream drops it by its message id.
"""

import asyncio
import hashlib
import queue
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Event
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
import paho.mqtt.client as paho
from nats.js import JetStreamContext
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from pydantic import Field

from fieldloop.domain.errors import SourceError, StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores import broker
from fieldloop.stores.sources.secrets import SecretName, secret, secret_file
from fieldloop.stores.sources.source import Options, Owner, Relayed, Request, Stray

SESSION_S: Final = 7 * 86_400  # how long the outside broker keeps a session between runs; MQTT 5 alone can be told
RECEIVE_MAXIMUM: Final = 1_000  # messages on the way to us; of 3.1.1 the broker decides
BATCH: Final = 500  # messages that are stored, then acknowledged, together
CONNECT_S: Final = 15.0
STORED_S: Final = 30.0
KEEPALIVE_S: Final = 60
MAX_PAYLOAD_BYTES: Final = 8 << 20  # of the platform's broker
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class MqttOptions(Options):
    """Which broker, and what to listen to there.

    Attributes:
        url: `mqtts://host:8883`, or `mqtt://host:1883` where nothing secret is sent.
        version: of the protocol.
        topics: what to subscribe to, such as `plant/+/readings`. The device's name follows from a message's topic.
        client_id: name of the session; no other client of the broker may have it.
        secret: file in `<secrets>/sources/` with `user:password`.
        ca: PEM file of the authority that signed the broker's certificate; the system's where left out.
        certificate: file in `<secrets>/sources/` with our own PEM certificate and key, where the broker asks for one.
        listen_s: how long a run listens, seconds.
        quiet_s: a run ends once nothing has come for so long, seconds.
    """

    url: Annotated[str, Field(pattern=r"^mqtts?://[^/@\s]+$")]
    version: Literal["3.1.1", "5"] = "5"
    topics: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=64)]
    secret: SecretName | None = None
    ca: str | None = None
    certificate: SecretName | None = None
    listen_s: Annotated[float, Field(gt=0, le=36_000)] = 600.0
    quiet_s: Annotated[float, Field(gt=0, le=3_600)] = 5.0


class MqttSource:
    """Passes messages of an outside broker on; see `Relay`."""

    options: ClassVar[type[Options]] = MqttOptions

    def __init__(self, request: Request, options: MqttOptions) -> None:
        """Remember where to listen."""
        if request.device_field is not None:
            raise SourceError("an MQTT source tells devices by topic: give `device` a `pattern` or a `name`")
        self._request = request
        self._options = options

    def relay(self, owner: Owner) -> Relayed:
        """Pass on what the outside broker has; see `Relay`."""
        session = _Session(self._request, self._options)
        try:
            session.open()
            return asyncio.run(self._pass_on(session, owner))
        finally:
            session.close()

    async def _pass_on(self, session: "_Session", owner: Owner) -> Relayed:
        options, total = self._options, Relayed(0, 0)
        end = time.monotonic() + options.listen_s
        try:
            async with broker.platform(self._request.settings) as (_, streams):
                while (left := end - time.monotonic()) > 0:
                    messages = await asyncio.to_thread(session.take, min(left, options.quiet_s))
                    if not messages:
                        break
                    strays = await self._store(streams, messages, owner)
                    session.acknowledge(messages)
                    total = Relayed(total.stored + len(messages) - strays, total.strays + strays)
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as exc:
            raise StoreError(f"the platform's stream did not take a message: {exc or type(exc).__name__}") from exc
        return total

    async def _store(self, streams: JetStreamContext, messages: Sequence[paho.MQTTMessage], owner: Owner) -> int:
        """Store messages in the stream, in order; when this returns they are safe. Return how many were strays."""
        acknowledged, strays = [], []
        for message in messages:
            device = owner.device_of(message.topic)
            if device is None:
                strays.append(_stray(message, Reason.UNKNOWN_DEVICE, "no device can be told from the topic"))
            elif len(message.payload) > MAX_PAYLOAD_BYTES:
                detail = f"expected at most {MAX_PAYLOAD_BYTES:,} bytes, got {len(message.payload):,}"
                strays.append(_stray(message, Reason.TOO_LARGE, detail))
            else:
                subject, headers = f"devices.{device}.readings", {"Nats-Msg-Id": self._message_id(message)}
                acknowledged.append(await streams.publish_async(subject, bytes(message.payload), headers=headers))
        await asyncio.wait_for(asyncio.gather(*acknowledged), STORED_S)
        await asyncio.to_thread(owner.keep, strays)
        return len(strays)

    def _message_id(self, message: paho.MQTTMessage) -> str:
        """Return what a message and its repetition have in common: packet identifier, topic and content."""
        digest = hashlib.blake2b(message.topic.encode() + b"\0" + message.payload, digest_size=16)
        number = message.mid if message.qos else time.monotonic_ns()  # without QoS there is no repetition
        return f"{self._options.client_id}/{number}/{digest.hexdigest()}"


class _Session:
    """A lasting session at the outside broker; its messages wait in a queue until they are acknowledged."""

    def __init__(self, request: Request, options: MqttOptions) -> None:
        self._request = request
        self._options = options
        self._host, self._port, self._tls = _address(options.url)
        self._arrived: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        self._settled = Event()
        self._refusal = ""
        self._resumed = False
        self._client = self._made()

    def open(self) -> None:
        """Connect and subscribe.

        Raises:
            SourceError: the broker refuses the credentials or a topic.
            StoreError: it does not answer.
        """
        five = self._options.version == "5"
        arguments: dict[str, Any] = {"clean_start": False, "properties": _lasting()} if five else {}
        try:
            self._client.connect(self._host, self._port, KEEPALIVE_S, **arguments)
        except ssl.SSLError as exc:
            raise SourceError(f"{self._options.url}: no trust in the broker, or it in us: {exc}") from exc
        except OSError as exc:
            raise StoreError(f"{self._options.url} does not answer: {exc}") from exc
        self._client.loop_start()
        if not self._settled.wait(CONNECT_S):
            raise StoreError(f"{self._options.url} did not answer within {CONNECT_S:g} s")
        if self._refusal:
            raise SourceError(f"{self._options.url}: {self._refusal}")

    def close(self) -> None:
        """Disconnect; the session stays at the broker."""
        self._client.disconnect()
        self._client.loop_stop()

    def take(self, wait_s: float) -> list[paho.MQTTMessage]:
        """Return what has arrived, in order, once something has; nothing if nothing comes in time."""
        messages: list[paho.MQTTMessage] = []
        with suppress(queue.Empty):
            messages.append(self._arrived.get(timeout=wait_s))
            while len(messages) < BATCH:
                messages.append(self._arrived.get_nowait())
        return messages

    def acknowledge(self, messages: Sequence[paho.MQTTMessage]) -> None:
        """Tell the broker that messages are safe."""
        for message in messages:
            self._client.ack(message.mid, message.qos)

    def _made(self) -> paho.Client:
        options, five = self._options, self._options.version == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if five else False,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            manual_ack=True,
        )
        if self._tls:
            context = ssl.create_default_context(cafile=options.ca)
            if options.certificate is not None:
                context.load_cert_chain(secret_file(self._request.settings, options.certificate))
            client.tls_set_context(context)
        if options.secret is not None:
            if not self._tls and self._host not in LOOPBACK:
                raise SourceError(f"{options.url}: credentials go over mqtts alone")
            user, _, password = secret(self._request.settings, options.secret).partition(":")
            client.username_pw_set(user, password)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: paho.Client, _: Any, flags: Any, reason: Any, *__: Any) -> None:
        if reason.is_failure:
            self._refusal = f"the broker refuses the connection: {reason}"
            self._settled.set()
            return
        self._resumed = flags.session_present and self._options.version == "3.1.1"
        wanted = [
            (topic, SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB))
            if self._options.version == "5"
            else (topic, 1)
            for topic in self._options.topics
        ]
        client.subscribe(wanted)  # type: ignore[arg-type] # a list of either kind of pair

    def _on_subscribe(self, _: Any, __: Any, ___: Any, reasons: Sequence[Any], *____: Any) -> None:
        for topic, reason in zip(self._options.topics, reasons, strict=False):
            if reason.is_failure:
                self._refusal = f"the broker refuses topic `{topic}`: {reason}"
        self._settled.set()

    def _on_message(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        if message.retain and self._resumed:  # it came live already; 3.1.1 repeats it to whoever subscribes again
            client.ack(message.mid, message.qos)
        else:
            self._arrived.put(message)


def _address(url: str) -> tuple[str, int, bool]:
    parts = urlsplit(url)
    tls = parts.scheme == "mqtts"
    return parts.hostname or "", parts.port or (8883 if tls else 1883), tls


def _lasting() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho's has no types
    properties.SessionExpiryInterval = SESSION_S
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    return properties


def _stray(message: paho.MQTTMessage, reason: Reason, detail: str) -> Stray:
    return Stray(message.topic, reason, detail, bytes(message.payload[:MAX_PAYLOAD_BYTES]))
