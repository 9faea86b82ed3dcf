"""Readings for this target: pulled from its durable consumer, in order and without a hole.

The consumer acknowledges all up to a message, so acknowledging past one that was lost on the way to us would drop it.
Deliveries are numbered by the consumer. Where a number does not follow on (a kill, a broken connection), what came is
left alone until the acknowledgement wait is over. The broker then sends all that is open again, in any order, before
anything new: it is collected up to the first new message, and put into order.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

BATCH: Final = 256  # messages a pull
BATCH_BYTES: Final = 16 << 20  # payload bytes a pull
EXPIRES_S: Final = 5.0  # a pull without messages ends after it
SETTLE_S: Final = 0.5  # what is open comes again without longer pauses
OVERDUE_S: Final = 2.0  # a pull of which nothing was heard so long after its end was lost
MARGIN_S: Final = 1.0  # the broker's timer for redelivery may be late
EXPIRED: Final = "408"  # the status of a pull whose time is over
_REPLY_TOKENS: Final = 9  # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<ns>.<pending>


class OutOfOrder(Exception):  # noqa: N818 - a turn in the road, not an error
    """What came does not follow on what was dealt with; the broker sends it again after the acknowledgement wait."""


class Position(msgspec.Struct, frozen=True):
    """The last message that was dealt with: its numbers in stream and consumer, and when the broker stored it."""

    stream: int = 0
    consumer: int = 0
    arrived_us: int = 0


@dataclass(frozen=True)
class Delivery:
    """One message of a device, the subject that acknowledges it and all before, and whether it was delivered before."""

    device: str
    payload: bytes
    position: Position
    reply: str
    again: bool = False


@dataclass(frozen=True)
class Batch:
    """Messages that are new to us, in order, and where we stand once they are dealt with; `reply` acknowledges all."""

    fresh: Sequence[Delivery]
    position: Position
    reply: str


class Feed:
    """Pulls messages from stream `readings` through the consumer that bears the target's name."""

    def __init__(self, client: Client, target: str, redelivery_s: float) -> None:
        self._client = client
        self._target = target
        self._redelivery_s = redelivery_s
        self._queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._wanted = 0
        self._lost_at = 0.0
        self._rebased = False
        self._connection = 0

    async def take(self, position: Position, wait_s: float) -> Batch | None:
        """Wait for the next messages after `position`; None where none come in time.

        Raises:
            OutOfOrder: a hole or a disorder shows: `drop`, wait `rest_s`, then take again.
        """
        if self._rebased:
            deliveries = await self._collect(wait_s)
            self._rebased = not deliveries
            return _batch(deliveries, put_in_order(position, deliveries), position) if deliveries else None
        deliveries = [_delivery(message) for message in await self._receive(wait_s)]
        return _batch(deliveries, in_order(position, deliveries), position) if deliveries else None

    async def close(self, position: Position) -> Batch | None:
        """End the pull and return what was already on its way.

        Raises:
            OutOfOrder: see `take`.
        """
        if self._subscription is None:
            return None
        await self._subscription.drain()  # type: ignore[no-untyped-call]
        self._subscription, self._wanted = None, 0
        deliveries = [_delivery(message) for message in self._drain() if not _status(message)]
        return _batch(deliveries, in_order(position, deliveries), position) if deliveries else None

    async def drop(self) -> None:
        """Forget what came; the caller then waits `rest_s` before it takes again."""
        subscription, self._subscription = self._subscription, None
        self._wanted, self._rebased = 0, True
        if subscription is not None:
            await subscription.unsubscribe()

    @property
    def rest_s(self) -> float:
        """Seconds after which the broker delivers again what was not acknowledged."""
        return self._redelivery_s + MARGIN_S

    async def acknowledge(self, batch: Batch) -> None:
        """Acknowledge a batch and all before it."""
        await self._client.publish(batch.reply, b"+ACK")

    async def _collect(self, wait_s: float) -> list[Delivery]:
        """Return all that is delivered again, up to the first new message."""
        collected = [_delivery(message) for message in await self._receive(wait_s)]
        while collected and all(delivery.again for delivery in collected):
            following = [_delivery(message) for message in await self._receive(SETTLE_S)]
            if not following:
                break
            collected += following
        return collected

    async def _receive(self, wait_s: float) -> list[Msg]:
        await self._pull()
        try:
            async with asyncio.timeout(wait_s):
                first = await self._queue.get()
        except TimeoutError:
            return []
        received = [first, *self._drain()]
        messages = [message for message in received if not _status(message)]
        if len(messages) == len(received):
            self._wanted -= len(messages)
            return messages
        self._wanted = 0  # a status ends the pull
        if not messages and _status(first) != EXPIRED:
            await asyncio.sleep(wait_s)  # the consumer is away or refuses: no use in asking again at once
        return messages

    async def _pull(self) -> None:
        if self._subscription is None:
            self._inbox = self._client.new_inbox()
            self._queue = asyncio.Queue()
            self._subscription = await self._client.subscribe(self._inbox, cb=self._queue.put)
        connection = self._client.stats["reconnects"]  # the broker forgets a pull when the connection breaks
        if connection == self._connection and self._wanted > 0 and time.monotonic() < self._lost_at:
            return
        self._connection = connection
        request = {"batch": BATCH, "max_bytes": BATCH_BYTES, "expires": int(EXPIRES_S * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.readings.{self._target}"
        await self._client.publish(subject, msgspec.json.encode(request), reply=self._inbox)
        self._wanted, self._lost_at = BATCH, time.monotonic() + EXPIRES_S + OVERDUE_S

    def _drain(self) -> list[Msg]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]


def in_order(position: Position, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Return those of the deliveries that come after `position`.

    Args:
        position: the last message that was dealt with.
        deliveries: at least one, as received.

    Raises:
        OutOfOrder: the consumer's numbers do not follow on, or the stream's go back.
    """
    made_anew = deliveries[0].position.consumer == 1  # a consumer's first delivery: nothing of it can be lost
    _require_following(deliveries, 1 if made_anew else position.consumer + 1)
    fresh = _fresh(position, deliveries)
    streams = [delivery.position.stream for delivery in fresh]
    if streams != sorted(set(streams)):
        raise OutOfOrder(f"messages {streams[0]} to {streams[-1]} of the stream came in disorder")
    return fresh


def put_in_order(position: Position, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Return those that come after `position`, sorted, each once; all that is open must be among them.

    Raises:
        OutOfOrder: one of the deliveries was lost on the way.
    """
    _require_following(deliveries, deliveries[0].position.consumer)
    by_stream = {delivery.position.stream: delivery for delivery in _fresh(position, deliveries)}
    return [by_stream[stream] for stream in sorted(by_stream)]


def _require_following(deliveries: Sequence[Delivery], first: int) -> None:
    numbers = [delivery.position.consumer for delivery in deliveries]
    if numbers != list(range(first, first + len(numbers))):
        raise OutOfOrder(f"expected {len(numbers)} deliveries from number {first}, got {numbers[0]} to {numbers[-1]}")


def _fresh(position: Position, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Leave out what was dealt with; an old number with a new time means that the stream itself was made anew."""
    after = position.stream
    if any(d.position.stream <= after and d.position.arrived_us > position.arrived_us for d in deliveries):
        after = 0
    return [delivery for delivery in deliveries if delivery.position.stream > after]


def _batch(deliveries: Sequence[Delivery], fresh: Sequence[Delivery], position: Position) -> Batch:
    """Say where we stand once `fresh` is dealt with; the highest of all messages acknowledges them."""
    reached = fresh[-1].position if fresh else position
    highest = max(deliveries, key=lambda delivery: delivery.position.stream)
    consumer = deliveries[-1].position.consumer
    return Batch(fresh, msgspec.structs.replace(reached, consumer=consumer), highest.reply)


def _delivery(message: Msg) -> Delivery:
    """Read the numbers from the reply subject."""
    tokens = message.reply.split(".")
    if len(tokens) != _REPLY_TOKENS:
        raise ValueError(f"expected an acknowledgement subject of {_REPLY_TOKENS} tokens, got {message.reply!r}")
    position = Position(int(tokens[5]), int(tokens[6]), int(tokens[7]) // 1000)
    return Delivery(message.subject.split(".")[1], message.data, position, message.reply, again=tokens[4] != "1")


def _status(message: Msg) -> str | None:
    """Return the status that a message of the server itself carries, None for a delivery."""
    return message.headers.get("Status") if message.headers else None
