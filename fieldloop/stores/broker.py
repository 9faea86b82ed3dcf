"""The broker (NATS with JetStream): its streams, and reading them in batches that are acknowledged after a commit."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import nats
import nats.errors
import nats.js.errors
import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    KeyValueConfig,
    StorageType,
    StoreCompression,
    StreamConfig,
)

from fieldloop.domain.enrolment import REDELIVERY_S
from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Messages
from fieldloop.stores.settings import Certificate, Settings

READINGS, PREDICTIONS = "readings", "predictions"
RELEASES, DESIRED, REPORTED = "releases", "desired", "reported"  # key-value buckets

KEEP_MESSAGES_S = timedelta(days=30).total_seconds()  # how long acquisition may stand still before messages expire
BATCH_MESSAGES = 20_000  # messages of one commit, at most
BATCH_BYTES = 64 << 20  # bytes of one commit, about
PULL_MESSAGES = 500
MAX_PAYLOAD_BYTES = 8 << 20  # the server's own limit
CONNECT_TIMEOUT_S = 5
RECONNECTS = 10
PULL_WAIT_S = 1.0
ACK_WAIT_S = 300.0  # longer than any commit takes


async def connect(settings: Settings, certificate: Certificate, name: str) -> Client:
    """Return a connection to the broker as the identity of this certificate.

    Raises:
        StoreError: the broker does not answer, or refuses the certificate.
    """
    try:
        context = ssl.create_default_context(cafile=str(certificate.ca))
        context.load_cert_chain(certificate.cert, certificate.key)
        return await nats.connect(
            settings.nats_endpoint,
            tls=context,
            name=name,
            connect_timeout=CONNECT_TIMEOUT_S,
            max_reconnect_attempts=RECONNECTS,
            allow_reconnect=True,
            error_cb=_quiet,
        )
    except (OSError, nats.errors.Error, TimeoutError) as exc:
        raise StoreError(
            f"the broker at {settings.nats_endpoint} cannot be reached with certificate {certificate.cert}: "
            f"{exc or type(exc).__name__}; is `fieldloop up` running?"
        ) from exc


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


async def prepare(js: JetStreamContext) -> None:
    """Create the streams and buckets that are missing; those that exist are left as they are.

    They must be there before a device may connect: the MQTT listener acknowledges messages that no stream keeps.
    """
    existing = {info.config.name for info in await js.streams_info()}
    for name, subjects in ((READINGS, ["devices.*.readings"]), (PREDICTIONS, ["predictions.*"])):
        if name not in existing:
            await js.add_stream(
                StreamConfig(
                    name=name,
                    subjects=subjects,
                    storage=StorageType.FILE,
                    compression=StoreCompression.S2,
                    max_age=KEEP_MESSAGES_S,
                )
            )
    for bucket in (RELEASES, DESIRED, REPORTED):
        if f"KV_{bucket}" not in existing:
            await js.create_key_value(KeyValueConfig(bucket=bucket, history=1, direct=True, storage=StorageType.FILE))


async def add_agent_consumer(js: JetStreamContext, target: str, devices: Sequence[str]) -> None:
    """Create the durable consumer from which a target's agent pulls what its devices send from now on.

    The platform makes it, so that the agent needs no right but to pull and to acknowledge. When the target's devices
    change, it is made anew from what the agent has acknowledged.
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


@dataclass(frozen=True)
class Drained:
    """What one drain read: messages, bytes of payload, and the last stream sequence that was committed."""

    messages: int
    payload_bytes: int
    last_sequence: int


def drain(
    settings: Settings,
    stream: str,
    consumer: str,
    after: int,
    commit: Callable[[Messages, Sequence[str]], None],
    quiet_s: float = 0,
) -> Drained:
    """Read a stream from sequence `after` + 1 to its end, a batch at a time; acknowledge each after its commit.

    The next batch is read while one is committed. The position comes from the caller, who keeps it with the data: the
    broker's own record of acknowledgements is for people and monitors to look at.

    Args:
        settings: where the broker is.
        stream: name of the stream.
        consumer: name of the durable consumer, made anew at every drain.
        after: last sequence that is already committed.
        commit: takes a batch of messages and their subjects; when it returns, the batch is safe.
        quiet_s: go on until nothing has come for so long; 0 stops at what was there at the start.

    Raises:
        StoreError: the broker cannot be reached, or lost messages on the way.
    """
    return asyncio.run(_drain(settings, stream, consumer, after, commit, quiet_s))


async def _drain(
    settings: Settings,
    stream: str,
    consumer: str,
    after: int,
    commit: Callable[[Messages, Sequence[str]], None],
    quiet_s: float,
) -> Drained:
    drained = Drained(0, 0, after)
    try:
        async with platform(settings) as (_, js):
            until = (await js.stream_info(stream)).state.last_seq
            reader = _Reader(await _subscribe(js, stream, consumer, after), after, until, quiet_s)
            batch = await reader.batch()
            while batch:
                ahead = asyncio.ensure_future(reader.batch())
                messages, subjects = _columns(batch)
                await asyncio.to_thread(commit, messages, subjects)
                await batch[-1].ack_sync(timeout=CONNECT_TIMEOUT_S)
                size = sum(map(len, messages.payloads))
                drained = Drained(
                    drained.messages + len(batch), drained.payload_bytes + size, int(messages.sequence[-1])
                )
                batch = await ahead
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as exc:
        raise StoreError(
            f"stream {stream!r} could not be read beyond sequence {drained.last_sequence}: {exc or type(exc).__name__}"
        ) from exc
    return drained


async def _subscribe(js: JetStreamContext, stream: str, consumer: str, after: int) -> JetStreamContext.PullSubscription:
    with suppress(nats.js.errors.NotFoundError):
        await js.delete_consumer(stream, consumer)
    await js.add_consumer(
        stream,
        ConsumerConfig(
            durable_name=consumer,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=AckPolicy.ALL,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=-1,
        ),
    )
    # The client silently drops what exceeds its pending limits: they must hold a whole pull of the largest messages.
    return await js.pull_subscribe_bind(
        consumer, stream, pending_msgs_limit=2 * PULL_MESSAGES, pending_bytes_limit=PULL_MESSAGES * MAX_PAYLOAD_BYTES
    )


@dataclass
class _Reader:
    """Collects pulls into batches, and knows when the stream is read to its end."""

    subscription: JetStreamContext.PullSubscription
    last: int
    until: int
    quiet_s: float
    deliveries: int = 0
    done: bool = field(default=False)

    async def batch(self) -> list[Msg]:
        """Return the next messages in order; none when the stream's end is reached."""
        batch: list[Msg] = []
        size = 0
        while not self.done and len(batch) < BATCH_MESSAGES and size < BATCH_BYTES:
            if self.last >= self.until and (self.quiet_s <= 0 or batch):
                break
            pulled = await self._pull()
            batch += pulled
            size += sum(len(message.data) for message in pulled)
        return batch

    async def _pull(self) -> list[Msg]:
        wait_s = self.quiet_s if self.last >= self.until else max(PULL_WAIT_S, self.quiet_s)
        try:
            pulled = await self.subscription.fetch(PULL_MESSAGES, timeout=wait_s)
        except (TimeoutError, nats.errors.TimeoutError):
            self.done = True
            return []
        fresh = []
        for message in pulled:
            position = message.metadata.sequence
            if position.consumer != self.deliveries + 1:
                raise StoreError(
                    f"delivery {self.deliveries + 1} of the stream did not arrive, {position.consumer} did"
                )
            self.deliveries += 1
            if position.stream > self.last:
                fresh.append(message)
                self.last = position.stream
        return fresh


def _columns(batch: Sequence[Msg]) -> tuple[Messages, list[str]]:
    """Return the batch as columns, and the subjects."""
    metadata = [message.metadata for message in batch]
    arrival_us = np.array([round(data.timestamp.timestamp() * 1_000_000) for data in metadata], dtype=np.int64)
    sequence = np.array([data.sequence.stream for data in metadata], dtype=np.int64)
    subjects = [message.subject for message in batch]
    devices = [subject.split(".")[1] for subject in subjects]
    return Messages(devices, arrival_us, sequence, [message.data for message in batch]), subjects
