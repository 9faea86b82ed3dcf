"""The broker (NATS with JetStream): connections to it, its streams and buckets, and the consumers of edge targets."""

import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    KeyValueConfig,
    RePublish,
    StorageType,
    StoreCompression,
    StreamConfig,
    SubjectTransform,
)

from fieldloop.domain.enrolment import NOTICE, REDELIVERY_S
from fieldloop.domain.errors import StoreError
from fieldloop.stores.settings import Certificate, Settings

READINGS, PREDICTIONS, ALERTS = "readings", "predictions", "alerts"
RELEASES, DESIRED, REPORTED, ROLLOUTS = "releases", "desired", "reported", "rollouts"
BUCKETS = (RELEASES, DESIRED, REPORTED, ROLLOUTS)  # key-value buckets
STREAMS = {  # with their subjects
    READINGS: "devices.*.readings",
    PREDICTIONS: "predictions.*",
    ALERTS: "alerts.*",
    **{f"KV_{bucket}": f"$KV.{bucket}.>" for bucket in BUCKETS},
}
_ENTRANCE = "_R_.entrance"  # the server refuses a client's message that names a subject under `_R_` for its answer

KEEP_MESSAGES_S = timedelta(days=30).total_seconds()  # how long acquisition may stand still before messages expire
KEEP_BYTES = 4 << 30  # of the readings, reserved on disk; beyond it the oldest go: flow *watch* tells long before
CONNECT_TIMEOUT_S = 5
RECONNECTS = 10


async def connect(settings: Settings, certificate: Certificate, name: str, reconnects: int = RECONNECTS) -> Client:
    """Return a connection to the broker as the identity of this certificate; -1 `reconnects` for ever.

    Raises:
        StoreError: the broker does not answer, or refuses the certificate.
    """
    logging.getLogger("asyncio").addFilter(_meant)  # once, however often it is added
    try:
        context = ssl.create_default_context(cafile=str(certificate.ca))
        context.load_cert_chain(certificate.cert, certificate.key)
        return await nats.connect(
            settings.nats_endpoint,
            tls=context,
            name=name,
            connect_timeout=CONNECT_TIMEOUT_S,
            max_reconnect_attempts=reconnects,
            allow_reconnect=True,
            error_cb=_quiet,
        )
    except (OSError, nats.errors.Error, TimeoutError) as exc:
        raise StoreError(
            f"the broker at {settings.nats_endpoint} cannot be reached with certificate {certificate.cert}: "
            f"{exc or type(exc).__name__}; is `fieldloop up` running?"
        ) from exc


def _meant(record: logging.LogRecord) -> bool:
    """Leave out what asyncio says, harmlessly, at every end of a connection that nats-py has raised to TLS."""
    return not record.getMessage().startswith("returning true from eof_received()")


async def _quiet(error: Exception) -> None:
    """Leave reporting to the call that fails: the client's default prints tracebacks."""


@asynccontextmanager
async def platform(settings: Settings) -> AsyncIterator[tuple[Client, JetStreamContext]]:
    """Connect as the platform itself for the length of a `with` block."""
    client = await connect(settings, settings.certificate("platform", "platform"), "fieldloop")
    try:
        yield client, client.jetstream(timeout=CONNECT_TIMEOUT_S)
    finally:
        await client.close()


async def prepare(js: JetStreamContext, *, mapped: bool = False) -> None:
    """Create the streams and buckets that are missing, and have each hear its entrance alone.

    They must be there before a device may connect: the MQTT listener acknowledges messages that no stream keeps.

    Args:
        js: the platform's connection.
        mapped: the broker maps subjects as `entrances` says.
    """
    existing = {info.config.name for info in await js.streams_info()}
    for name in (READINGS, PREDICTIONS, ALERTS):
        if name not in existing:
            await js.add_stream(
                StreamConfig(
                    name=name,
                    subjects=[STREAMS[name]],
                    storage=StorageType.FILE,
                    compression=StoreCompression.S2,
                    max_age=KEEP_MESSAGES_S,
                    max_bytes=KEEP_BYTES if name == READINGS else KEEP_BYTES // 4,
                    allow_direct=name != READINGS,  # a target looks up its own last message
                )
            )
    for bucket in BUCKETS:
        if f"KV_{bucket}" not in existing:
            await js.create_key_value(KeyValueConfig(bucket=bucket, history=1, direct=True, storage=StorageType.FILE))
    if mapped:
        for stream, subject in STREAMS.items():
            await _close(js, stream, subject)


def entrances() -> dict[str, str]:
    """Return to which subject the broker maps what clients publish to each stream.

    A client may name any subject for an answer, and JetStream, which may publish anywhere, sends the answer there: with
    a read of its own message a gateway could write another's desired state (docs/adr/0013). Answers are not mapped, and
    no client may name a subject under `_R_` for them: a stream that hears one of those alone hears no answers.
    """
    return {subject: _numbered(entrance(subject)) for subject in STREAMS.values()}


def entrance(subject: str) -> str:
    """Return where the broker leads what is published to a subject; rights are checked on it."""
    return f"{_ENTRANCE}.{subject}"


async def _close(js: JetStreamContext, stream: str, subject: str) -> None:
    """Have a stream hear its entrance alone, and keep what comes under the stream's own subjects."""
    config = (await js.stream_info(stream)).config
    heard = entrance(subject)
    if config.subjects != [heard]:
        config.subjects, config.subject_transform = [heard], SubjectTransform(heard, _numbered(subject))
        if stream == f"KV_{DESIRED}":
            config.republish = RePublish(subject, f"{NOTICE}.{subject}")
        await js.update_stream(config)


def _numbered(subject: str) -> str:
    """Return a subject as the server writes it where one is made from another: `*` has its number."""
    return subject.replace("*", "$1")


async def add_agent_consumer(js: JetStreamContext, target: str, devices: Sequence[str]) -> None:
    """Create the durable consumer from which a target's agent pulls what its devices send from now on.

    The platform makes it, so that the agent needs no right but to pull and to acknowledge. When the target's devices
    change, it is made anew from what the agent has acknowledged. Without devices there is none: one without a filter
    would have the readings of all.
    """
    subjects = [f"devices.{device}.readings" for device in devices]
    start: dict[str, Any] = {"deliver_policy": DeliverPolicy.NEW}
    with suppress(nats.js.errors.NotFoundError):
        found = await js.consumer_info(READINGS, target)
        if sorted(found.config.filter_subjects or [found.config.filter_subject]) == sorted(subjects):
            return
        acknowledged = found.ack_floor.stream_seq if found.ack_floor else 0
        start = {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": acknowledged + 1}
        await js.delete_consumer(READINGS, target)
    if not subjects:
        return
    await js.add_consumer(
        READINGS,
        ConsumerConfig(
            durable_name=target,
            filter_subjects=subjects,
            ack_policy=AckPolicy.ALL,
            ack_wait=REDELIVERY_S,
            max_ack_pending=-1,
            **start,
        ),
    )
