"""Draining a stream of the broker: whole batches in order, each acknowledged after its commit."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import nats.errors
import nats.js.errors
import numpy as np
import polars as pl
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Messages, Named, Packed
from fieldloop.stores.broker import CONNECT_TIMEOUT_S, platform
from fieldloop.stores.pull import Pulled, Puller
from fieldloop.stores.settings import Settings

BATCH_MESSAGES = 200_000  # messages of one commit, at most
# Bytes of payload after which no more is asked for; what was asked for last (`pull.PULL_BYTES`) comes on top, so long
# messages are committed 32 MiB at a time. Three batches are in memory: read, prepared, being committed.
BATCH_BYTES = 12 << 20
REPLY_TOKENS = 9
PULL_WAIT_S = 30.0  # for messages that the broker has said are there
ACK_WAIT_S = 300.0  # longer than any commit takes

Prepared = TypeVar("Prepared")
Work = TypeVar("Work")


@dataclass(frozen=True)
class Backlog:
    """What a stream holds beyond a position: messages, and about how many bytes they have."""

    messages: int
    bytes: int


def backlog(settings: Settings, stream: str, after: int) -> Backlog:
    """Return how much of a stream lies beyond sequence `after`.

    Raises:
        StoreError: the broker cannot be reached.
    """
    return asyncio.run(_backlog(settings, stream, after))


async def _backlog(settings: Settings, stream: str, after: int) -> Backlog:
    try:
        async with platform(settings) as (_, js):
            state = (await js.stream_info(stream)).state
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as exc:
        raise StoreError(f"stream {stream!r} cannot be looked at: {exc or type(exc).__name__}") from exc
    messages = max(0, min(state.messages, state.last_seq - after))
    return Backlog(messages, state.bytes * messages // max(1, state.messages))


@dataclass(frozen=True)
class Fill:
    """How full a stream is with what lies beyond a position.

    Attributes:
        messages: how many lie beyond it.
        bytes_share: the share of the stream's bytes that they take; 0 where it has no limit.
        age_share: how old the oldest of them is, as a share of the age at which it would be dropped.
        oldest: when the oldest of them arrived; None where there is none.
    """

    messages: int
    bytes_share: float
    age_share: float
    oldest: datetime | None


def fill(settings: Settings, stream: str, after: int, now: datetime) -> Fill:
    """Return how full a stream is with messages beyond sequence `after`.

    Raises:
        StoreError: the broker cannot be reached.
    """
    return asyncio.run(_fill(settings, stream, after, now))


async def _fill(settings: Settings, stream: str, after: int, now: datetime) -> Fill:
    try:
        async with platform(settings) as (_, js):
            info = await js.stream_info(stream)
            state, config = info.state, info.config
            messages = max(0, min(state.messages, state.last_seq - after))
            if not messages:
                return Fill(0, 0.0, 0.0, None)
            oldest = (await js.get_msg(stream, max(after + 1, state.first_seq), next=True, subject=">")).time
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as exc:
        raise StoreError(f"stream {stream!r} cannot be looked at: {exc or type(exc).__name__}") from exc
    taken = state.bytes * messages / state.messages
    limit, age_s = config.max_bytes or 0, config.max_age or 0.0
    age = 0.0 if oldest is None or not age_s else (now - oldest).total_seconds() / age_s
    return Fill(messages, taken / limit if limit > 0 else 0.0, age, oldest)


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
    prepare: Callable[[Messages, Named], Prepared],
    commit: Callable[[Prepared], None],
    quiet_s: float = 0,
) -> Drained:
    """Read a stream from sequence `after` + 1 to its end, a batch at a time; acknowledge each after its commit.

    The next batch is prepared, and the one after it read, while one is committed. The position comes from the caller,
    who keeps it with the data: the broker's own record of acknowledgements is for people and monitors to look at.

    Args:
        settings: where the broker is.
        stream: name of the stream.
        consumer: name of the durable consumer, made anew at every drain.
        after: last sequence that is already committed.
        prepare: makes what is to be committed of a batch of messages and their subjects; changes nothing outside.
        commit: takes it; when it returns, the batch is safe.
        quiet_s: go on until nothing has come for so long; 0 stops at what was there at the start.

    Raises:
        StoreError: the broker cannot be reached, or lost messages on the way.
    """
    return asyncio.run(_drain(settings, stream, consumer, after, prepare, commit, quiet_s))


async def _drain(
    settings: Settings,
    stream: str,
    consumer: str,
    after: int,
    prepare: Callable[[Messages, Named], Prepared],
    commit: Callable[[Prepared], None],
    quiet_s: float,
) -> Drained:
    drained = Drained(0, 0, after)
    try:
        async with platform(settings) as (client, js):
            until = (await js.stream_info(stream)).state.last_seq
            pending = await add_consumer(js, stream, consumer, after)
            certificate = settings.certificate("platform", "platform")
            with Puller(settings.nats_endpoint, certificate, stream, consumer) as puller:
                reader = _Reader(puller, after, until, quiet_s, pending)

                ahead = _Ahead(reader, prepare)
                while (found := await ahead.next()) is not None:
                    batch, prepared = found
                    await asyncio.to_thread(commit, prepared)
                    await client.request(batch.reply, b"+ACK", timeout=CONNECT_TIMEOUT_S)
                    drained = Drained(
                        drained.messages + len(batch.subjects),
                        drained.payload_bytes + batch.size,
                        int(batch.messages.sequence[-1]),
                    )
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as exc:
        raise StoreError(
            f"stream {stream!r} could not be read beyond sequence {drained.last_sequence}: {exc or type(exc).__name__}"
        ) from exc
    return drained


async def add_consumer(js: JetStreamContext, stream: str, consumer: str, after: int) -> int:
    """Make the consumer anew behind a position; return how many messages it has to deliver."""
    with suppress(nats.js.errors.NotFoundError):
        await js.delete_consumer(stream, consumer)
    info = await js.add_consumer(
        stream,
        ConsumerConfig(
            durable_name=consumer,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            ack_policy=AckPolicy.ALL,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=-1,
            mem_storage=True,  # the position is the table's: the broker's own record need not outlive it
        ),
    )
    return info.num_pending or 0


@dataclass(frozen=True)
class _Batch:
    """Messages of one commit, and the subject that acknowledges the last of them and all before."""

    messages: Messages
    subjects: Named
    reply: str
    size: int


class _Ahead(Generic[Prepared]):
    """Reads one batch and prepares the one before it, while the caller commits the one before that."""

    def __init__(self, reader: "_Reader", prepare: Callable[[Messages, Named], Prepared]) -> None:
        self._reader = reader
        self._prepare = prepare
        self._reading = self._start(asyncio.to_thread(reader.batch))
        self._preparing = self._start(self._prepared())

    async def next(self) -> tuple[_Batch, Prepared] | None:
        """Return the next batch; None when the stream's end is reached."""
        found = await self._preparing
        if found is not None:
            self._preparing = self._start(self._prepared())
        return found

    async def _prepared(self) -> tuple[_Batch, Prepared] | None:
        batch = await self._reading
        if batch is None:
            return None
        self._reading = self._start(asyncio.to_thread(self._reader.batch))
        return batch, await asyncio.to_thread(self._prepare, batch.messages, batch.subjects)

    @staticmethod
    def _start(work: Coroutine[Any, Any, Work]) -> asyncio.Task[Work]:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # a failed commit leaves it unawaited
        return task


@dataclass
class _Reader:
    """Collects pulls into batches, and knows when the stream is read to its end."""

    puller: Puller
    last: int
    until: int
    quiet_s: float
    pending: int
    deliveries: int = 0
    done: bool = False

    def batch(self) -> _Batch | None:
        """Return the next messages in order; None when the stream's end is reached."""
        pulled = Pulled()
        tokens: list[pl.DataFrame] = []
        while not self._full(pulled):
            tokens += self._pull(pulled)
        return _columns(pulled, pl.concat(tokens)) if pulled.payloads else None

    def _full(self, pulled: Pulled) -> bool:
        if self.done or len(pulled.payloads) >= BATCH_MESSAGES or pulled.size >= BATCH_BYTES:
            return True
        read_to_end = self.pending == 0 or self.last >= self.until
        return read_to_end and (self.quiet_s <= 0 or bool(pulled.payloads))

    def _pull(self, pulled: Pulled) -> list[pl.DataFrame]:
        """Ask for exactly what is known to be there, or for the first message that comes; return their numbers."""
        begin = len(pulled.payloads)
        wait_s = PULL_WAIT_S if self.pending else self.quiet_s
        if not self.puller.read(pulled, min(max(self.pending, 1), BATCH_MESSAGES - begin), wait_s):
            if self.pending:
                raise StoreError(f"{self.pending:,} messages that the broker has announced did not come in {wait_s} s")
            self.done = True
            return []
        tokens = _tokens(pulled.replies[begin:])
        expected = np.arange(self.deliveries + 1, self.deliveries + 1 + len(tokens))
        delivered = tokens["delivery"].to_numpy()
        if (wrong := np.flatnonzero(delivered != expected)).size:
            raise StoreError(f"delivery {expected[wrong[0]]} of the stream did not arrive, {delivered[wrong[0]]} did")
        self.deliveries += len(tokens)
        self.pending = int(tokens["pending"][-1])
        return [self._fresh(pulled, begin, tokens)]

    def _fresh(self, pulled: Pulled, begin: int, tokens: pl.DataFrame) -> pl.DataFrame:
        """Leave out what the broker delivered again."""
        sequence = tokens["sequence"].to_numpy()
        highest = np.maximum.accumulate(np.append(self.last, sequence))
        fresh = sequence > highest[:-1]
        self.last = int(highest[-1])
        if not fresh.all():
            for entries in (pulled.subjects, pulled.replies, pulled.payloads):
                entries[begin:] = [entry for entry, keep in zip(entries[begin:], fresh, strict=True) if keep]
        return tokens.filter(fresh)


def _tokens(replies: Sequence[bytes]) -> pl.DataFrame:
    """Return the numbers of acknowledgement subjects: sequence, delivery, arrival_ns, pending (int64).

    They read `$JS.ACK.<stream>.<consumer>.<times>.<sequence>.<delivery>.<arrival_ns>.<pending>` (NATS, ADR-15).
    """
    parts = pl.Series(replies).cast(pl.String).str.split_exact(".", REPLY_TOKENS - 1).struct.unnest()
    try:
        return parts.select(
            pl.col(f"field_{place}").cast(pl.Int64).alias(name)
            for place, name in enumerate(("sequence", "delivery", "arrival_ns", "pending"), REPLY_TOKENS - 4)
        )
    except pl.exceptions.InvalidOperationError as exc:
        raise StoreError(f"expected acknowledgement subjects of {REPLY_TOKENS} tokens, got {replies[0]!r}") from exc


def _columns(pulled: Pulled, tokens: pl.DataFrame) -> _Batch:
    """Return the batch as columns."""
    code = {subject: number for number, subject in enumerate(dict.fromkeys(pulled.subjects))}
    codes = np.fromiter(map(code.__getitem__, pulled.subjects), dtype=np.int32, count=len(pulled.subjects))
    subjects = Named(tuple(subject.decode() for subject in code), codes)
    devices = Named(tuple(subject.split(".")[1] for subject in subjects.names), codes)
    arrival_us = tokens["arrival_ns"].to_numpy() // 1000
    messages = Messages(devices, arrival_us, tokens["sequence"].to_numpy(), Packed.of(pulled.payloads))
    return _Batch(messages, subjects, pulled.replies[-1].decode(), pulled.size)
