"""Readings for this target: pulled from its durable consumer, in order and without a hole.

The consumer acknowledges all up to a message, so acknowledging past one that was lost on the way to us would drop it.
Deliveries are numbered by the consumer. Where a number does not follow on (a kill, a broken connection), what came is
left alone until the acknowledgement wait is over. The broker then sends all that is open again, in any order, before
anything new: it is collected up to the first new message, and put into order.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from fieldloop.domain.errors import ServiceError
from fieldloop.edge.link import Link, Message

BATCH: Final = 1024  # messages a pull; the next is asked for when half have come, so that nothing waits for it
BATCH_BYTES: Final = 16 << 20  # payload bytes a pull; above the broker's largest message
TAKE: Final = 256  # messages dealt with at once
EXPIRES_S: Final = 5.0  # a pull without messages ends after it
SETTLE_S: Final = 0.5  # what is open comes again without longer pauses
OVERDUE_S: Final = 2.0  # a pull of which nothing was heard so long after its end was lost
MARGIN_S: Final = 1.0  # the broker's timer for redelivery may be late
RETRY_S: Final = 0.5  # after the broker has refused a pull
_GOES_ON: Final = ("408", "409")  # statuses of a pull that ended as pulls do
_REPLY_TOKENS: Final = 9  # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<ns>.<pending>


class OutOfOrder(Exception):  # noqa: N818 - a turn in the road, not an error
    """What came does not follow on what was dealt with; the broker sends it again after the acknowledgement wait."""


class Position(msgspec.Struct, frozen=True):
    """The last message that was dealt with: its numbers in stream and consumer, and when the broker stored it."""

    stream: int = 0
    consumer: int = 0
    arrived_us: int = 0


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One message of a device, the subject that acknowledges it and all before, and whether it was delivered before.

    `received` is when it came here: monotonic clock, seconds.
    """

    device: str
    payload: bytes
    position: Position
    reply: str
    again: bool = False
    received: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Messages that are new to us, in order, and where we stand once they are dealt with; `reply` acknowledges all."""

    fresh: Sequence[Delivery]
    position: Position
    reply: str


class Feed:
    """Pulls messages from stream `readings` through the consumer that bears the target's name."""

    eager = False  # the broker holds as much unacknowledged as it takes

    def __init__(self, link: Link, target: str, redelivery_s: float) -> None:
        self._link = link
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.readings.{target}"
        self._redelivery_s = redelivery_s
        self._queue: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._subscription: int | None = None
        self._inbox = ""
        self._asked = 0  # pulls, over all time
        self._pulls: dict[str, _Pull] = {}  # those that are open, oldest first, by the subject of their status
        self._refused_at = -RETRY_S
        self._rebased = False
        link.at_end(self._arrived.set)

    @property
    def gone(self) -> str | None:
        """Why the connection has ended; None as long as it has not."""
        return self._link.reason if self._link.closed.is_set() else None

    async def take(self, position: Position, wait_s: float) -> Batch | None:
        """Wait for the next messages after `position`; None where none come in time.

        Raises:
            OutOfOrder: a hole or a disorder shows: `drop`, wait `rest_s`, then take again.
            ServiceError: the connection has ended.
        """
        if self._rebased:
            deliveries = await self._collect(wait_s)
            self._rebased = not deliveries
            return _batch(deliveries, put_in_order(position, deliveries), position) if deliveries else None
        deliveries = await self._receive(wait_s)
        return _batch(deliveries, in_order(position, deliveries), position) if deliveries else None

    async def close(self, position: Position) -> Batch | None:
        """End the pull and return what was already on its way.

        Raises:
            OutOfOrder: see `take`.
            ServiceError: the connection has ended.
        """
        if self._subscription is None:
            return None
        self._link.stop(self._subscription)
        self._subscription = None
        await self._link.flush()
        deliveries = list(self._queue)
        self._queue.clear()
        return _batch(deliveries, in_order(position, deliveries), position) if deliveries else None

    def drop(self) -> None:
        """Forget what came; the caller then waits `rest_s` before it takes again."""
        if self._subscription is not None:
            self._link.unsubscribe(self._subscription)
        self._subscription, self._rebased = None, True
        self._queue.clear()
        self._pulls.clear()

    def end(self) -> None:
        """Close the connection."""
        self._link.close()

    @property
    def rest_s(self) -> float:
        """Seconds after which the broker delivers again what was not acknowledged."""
        return self._redelivery_s + MARGIN_S

    def acknowledge(self, reply: str) -> None:
        """Acknowledge a batch, by its `reply`, and all before it."""
        self._link.publish(reply, b"+ACK")

    async def _collect(self, wait_s: float) -> list[Delivery]:
        """Return all that is delivered again, up to the first new message."""
        collected = await self._receive(wait_s)
        while collected and all(delivery.again for delivery in collected):
            following = await self._receive(SETTLE_S)
            if not following:
                break
            collected += following
        return collected

    async def _receive(self, wait_s: float) -> list[Delivery]:
        self._pull()
        if not self._queue:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
        if not self._queue and self._link.closed.is_set():
            raise ServiceError(self._link.reason)
        return [self._queue.popleft() for _ in range(min(len(self._queue), TAKE))]

    def _pull(self) -> None:
        """Ask for more where less than half a pull is open."""
        now = time.monotonic()
        self._pulls = {inbox: pull for inbox, pull in self._pulls.items() if now < pull.lost_at}
        if sum(pull.wanted for pull in self._pulls.values()) > BATCH // 2 or now < self._refused_at + RETRY_S:
            return
        if self._subscription is None:
            self._inbox = f"{self._link.inbox}.p"
            self._subscription = self._link.subscribe(f"{self._inbox}.*", self._took)
        self._asked += 1
        inbox = f"{self._inbox}.{self._asked}"
        self._pulls[inbox] = _Pull(BATCH, now + EXPIRES_S + OVERDUE_S)
        request = {"batch": BATCH, "max_bytes": BATCH_BYTES, "expires": int(EXPIRES_S * 1e9)}
        self._link.publish(self._subject, msgspec.json.encode(request), reply=inbox)

    def _took(self, message: Message) -> None:
        """Queue a delivery; a status ends the pull that it is about."""
        status = message.status if message.headers else None
        if status is None:
            self._queue.append(_delivery(message))
            self._count()
        else:
            self._pulls.pop(message.subject, None)
            if status not in _GOES_ON:  # the consumer is away or refuses: no use in asking again at once
                self._refused_at = time.monotonic()
        self._arrived.set()

    def _count(self) -> None:
        """Book a delivery on the oldest pull: the broker serves them in turn."""
        inbox = next(iter(self._pulls), None)
        if inbox is not None:
            self._pulls[inbox].wanted -= 1
            if self._pulls[inbox].wanted <= 0:
                del self._pulls[inbox]


@dataclass
class _Pull:
    """A pull that is open: how many messages may still come of it, and when it counts as lost (monotonic clock)."""

    wanted: int
    lost_at: float


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


def _delivery(message: Message) -> Delivery:
    """Read the numbers from the reply subject."""
    tokens = message.reply.split(".")
    if len(tokens) != _REPLY_TOKENS:
        raise ValueError(f"expected an acknowledgement subject of {_REPLY_TOKENS} tokens, got {message.reply!r}")
    position = Position(int(tokens[5]), int(tokens[6]), int(tokens[7]) // 1000)
    device = message.subject.split(".")[1]
    return Delivery(device, message.data, position, message.reply, tokens[4] != "1", message.received)
