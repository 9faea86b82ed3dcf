"""Rollouts in the broker: what targets should run, what they report, and the records of rollouts.

Three key-value buckets: `desired` and `reported` by target, `rollouts` with a rollout's head and its membership. Whole
fleets are read as one stream and written in one pipeline; a write names the value that it follows, so that of two
writers the second finds out.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy, Header

from fieldloop.domain.errors import PayloadError, StoreError
from fieldloop.domain.rollout import NOTHING, Desired, Sighting, decode_report
from fieldloop.domain.rollout.record import Membership, Rollout
from fieldloop.stores import broker

FEW: Final = 256  # keys up to which only they are read, and not the whole bucket
READ_S: Final = 60.0  # for all that a bucket holds
WRITE_S: Final = 30.0  # for one of them
AT_ONCE: Final = 1024  # writes in flight
WRONG_SEQUENCE: Final = 10071  # the broker's word for: somebody else has written in between
EXPECTED_LAST: Final = Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value
HEAD, MEMBERS = "head", "members"
DELETED: Final = ("DEL", "PURGE")


@dataclass(frozen=True)
class Held:
    """What a target is asked for, and the sequence under which the broker keeps it."""

    desired: Desired | None
    sequence: int = 0


NOT_ASKED: Final = Held(None)


@dataclass(frozen=True)
class Heard:
    """The last word of each target, where it ever said one: reports, and why those of others cannot be used."""

    sightings: dict[str, Sighting] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)

    def take(self, target: str, message: Msg) -> None:
        """Take in what a target says, in place of what it said before."""
        try:
            report = decode_report(message.data, target)
        except PayloadError as exc:
            self.unusable[target] = str(exc)
            return
        self.unusable.pop(target, None)
        self.sightings[target] = Sighting(report, round(message.metadata.timestamp.timestamp() * 1e6))

    def of(self, targets: Collection[str]) -> "Heard":
        """Return the last words of these targets."""
        usable = {target: sighting for target, sighting in self.sightings.items() if target in targets}
        return Heard(usable, {target: reason for target, reason in self.unusable.items() if target in targets})


@dataclass(frozen=True)
class Head:
    """A rollout's record, and the sequence under which the broker keeps it."""

    rollout: Rollout
    sequence: int


async def held(js: JetStreamContext, targets: Collection[str]) -> dict[str, Held]:
    """Return what each of these targets is asked for, where it ever was asked for anything."""
    return {
        key: Held(_order(message), message.metadata.sequence.stream)
        for key, message in (await _latest(js, broker.DESIRED, targets)).items()
    }


async def heard(js: JetStreamContext, targets: Collection[str]) -> Heard:
    """Return what each target reported last, and when the broker stored it."""
    found = Heard()
    for target, message in (await _latest(js, broker.REPORTED, targets)).items():
        found.take(target, message)
    return found


async def sightings(js: JetStreamContext, targets: Collection[str]) -> dict[str, Sighting]:
    """Return each target's last report and when the broker stored it, where there is one that can be used."""
    return (await heard(js, targets)).sightings


async def ask(
    js: JetStreamContext, orders: Mapping[str, Desired], before: Mapping[str, Held]
) -> tuple[dict[str, Held], tuple[str, ...]]:
    """Write what targets should run, each only if nobody has written since `before` was read.

    An order that says nothing of devices leaves what `before` says of them.

    Returns:
        What is held now where it was written, and the targets that somebody else has asked in between.

    Raises:
        StoreError: the broker refuses or does not answer.
    """
    written: dict[str, Held] = {}
    overtaken: list[str] = []
    orders = {target: _with_devices(order, before.get(target, NOT_ASKED)) for target, order in orders.items()}
    encoded = {order: msgspec.json.encode(order) for order in set(orders.values())}
    for group in _groups(list(orders)):
        puts = (
            _put(js, broker.DESIRED, target, encoded[orders[target]], before.get(target, NOT_ASKED).sequence)
            for target in group
        )
        for target, sequence in zip(group, await asyncio.gather(*puts), strict=True):
            if sequence is None:
                overtaken.append(target)
            else:
                written[target] = Held(orders[target], sequence)
    return written, tuple(overtaken)


async def assign(js: JetStreamContext, served: Mapping[str, Mapping[str, str]]) -> None:
    """Tell targets which devices they serve from now on, profile by device; what they should run stays.

    Raises:
        StoreError: the broker refuses or does not answer, or somebody else has asked in between.
    """
    before = await held(js, served)
    orders = {}
    for target, devices in served.items():
        order = before.get(target, NOT_ASKED).desired or Desired(NOTHING, "", 0, "devices")
        orders[target] = msgspec.structs.replace(order, devices=tuple(sorted(devices.items())))
    _, overtaken = await ask(js, orders, before)
    if overtaken:
        raise StoreError(f"asked by somebody else in between: {', '.join(overtaken)}; add them again")


async def desire(js: JetStreamContext, targets: Collection[str], release: str, manifest: str, why: str) -> Desired:
    """Ask targets to run a release, whatever they were asked for before, outside of any rollout; `why` is its name.

    Raises:
        StoreError: the broker refuses or does not answer.
    """
    order = Desired(release, manifest, now_us(), why)
    _, overtaken = await ask(js, dict.fromkeys(targets, order), await held(js, targets))
    if overtaken:
        raise StoreError(f"asked by somebody else in between: {', '.join(overtaken)}; ask again")
    return order


def now_us() -> int:
    """Return the time in microseconds since the epoch, UTC: what orders are stamped with."""
    return time.time_ns() // 1000


class Watch:
    """Reports as they come, from the last one of each target on."""

    def __init__(self, targets: Collection[str]) -> None:
        self._targets = frozenset(targets)
        self._heard = Heard()
        self._news = asyncio.Event()

    async def take(self, message: Msg) -> None:
        """Keep a report, in place of an older one that nobody has fetched yet."""
        if (key := _key(message)) in self._targets and not _deleted(message):
            self._heard.take(key, message)
            self._news.set()

    @property
    def unusable(self) -> Mapping[str, str]:
        """Why the last reports of some targets cannot be used."""
        return self._heard.unusable

    async def fresh(self, wait_s: float) -> dict[str, Sighting]:
        """Return what has come since the last call, after waiting so long for the first, at most."""
        try:
            await asyncio.wait_for(self._news.wait(), wait_s)
        except TimeoutError:
            return {}
        self._news.clear()
        found = dict(self._heard.sightings)
        self._heard.sightings.clear()
        return found


@asynccontextmanager
async def watch(js: JetStreamContext, targets: Collection[str]) -> AsyncIterator[Watch]:
    """Follow the reports of these targets for the length of an `async with` block."""
    reports = Watch(targets)
    with _broker_errors("reports cannot be followed"):
        subscription = await _subscribe(js, broker.REPORTED, targets, reports.take)
    try:
        yield reports
    finally:
        with _broker_errors("reports cannot be left"):
            await subscription.unsubscribe()


async def begin(js: JetStreamContext, rollout: Rollout, membership: Membership) -> Head:
    """Write a new rollout: its membership, then its head, which makes it count.

    Raises:
        StoreError: there is one of this name.
    """
    await _put(js, broker.ROLLOUTS, f"{MEMBERS}.{rollout.name}", msgspec.json.encode(membership), 0)
    sequence = await _put(js, broker.ROLLOUTS, f"{HEAD}.{rollout.name}", msgspec.json.encode(rollout), 0)
    if sequence is None:
        raise StoreError(f"there is a rollout {rollout.name!r} already: run again")
    return Head(rollout, sequence)


async def advance(js: JetStreamContext, head: Head, rollout: Rollout) -> Head | None:
    """Write how a rollout stands now; None where somebody else has written since `head` was read.

    Where there is nothing to write, it is looked up whether somebody has.
    """
    if rollout == head.rollout:
        _, newest = await _read(js, f"{HEAD}.{rollout.name}")
        return head if newest == head.sequence else None
    sequence = await _put(js, broker.ROLLOUTS, f"{HEAD}.{rollout.name}", msgspec.json.encode(rollout), head.sequence)
    return None if sequence is None else Head(rollout, sequence)


async def head(js: JetStreamContext, name: str) -> Head:
    """Return a rollout's record.

    Raises:
        StoreError: there is none of this name, or the broker does not answer.
    """
    data, sequence = await _read(js, f"{HEAD}.{name}")
    return Head(msgspec.json.decode(data, type=Rollout), sequence)


async def membership(js: JetStreamContext, name: str) -> Membership:
    """Return which targets a rollout asks and what they ran before.

    Raises:
        StoreError: there is none of this name, or the broker does not answer.
    """
    return msgspec.json.decode((await _read(js, f"{MEMBERS}.{name}"))[0], type=Membership)


async def heads(js: JetStreamContext) -> tuple[Head, ...]:
    """Return the records of all rollouts, the newest first."""
    found = [
        Head(msgspec.json.decode(message.data, type=Rollout), message.metadata.sequence.stream)
        for key, message in (await _latest(js, broker.ROLLOUTS, (), f"{HEAD}.>")).items()
    ]
    return tuple(sorted(found, key=lambda each: -each.rollout.issued_us))


async def forget(js: JetStreamContext, target: str) -> None:
    """Delete what a target should run and what it reported: it is no longer one."""
    with _broker_errors(f"target {target!r} was not removed"):
        for bucket in (broker.DESIRED, broker.REPORTED):
            await js.purge_stream(f"KV_{bucket}", subject=_subject(bucket, target))


async def _latest(js: JetStreamContext, bucket: str, keys: Collection[str], pattern: str = ">") -> dict[str, Msg]:
    """Return the last message of each key, read as one stream; of all that fit the pattern where there are many."""
    found: dict[str, Msg] = {}
    wanted = frozenset(keys)
    done = asyncio.Event()

    async def take(message: Msg) -> None:
        key = _key(message)
        if (not wanted or key in wanted) and not _deleted(message):
            found[key] = message
        if message.metadata.num_pending == 0:
            done.set()

    if not keys and pattern == ">":
        return {}
    with _broker_errors(f"bucket {bucket!r} cannot be read"):
        subscription = await _subscribe(js, bucket, keys, take, pattern)
        info = await subscription.consumer_info()
        if (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0):
            await asyncio.wait_for(done.wait(), READ_S)
        await subscription.unsubscribe()
    return found


async def _subscribe(
    js: JetStreamContext, bucket: str, keys: Collection[str], take: Callable[[Msg], object], pattern: str = ">"
) -> JetStreamContext.PushSubscription:
    subjects = [_subject(bucket, key) for key in keys] if 0 < len(keys) <= FEW else [_subject(bucket, pattern)]
    return await js.subscribe(
        subjects[0],
        stream=f"KV_{bucket}",
        config=ConsumerConfig(filter_subjects=subjects),
        cb=take,  # type: ignore[arg-type] # the client's alias says less than it takes
        ordered_consumer=True,
        deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
    )


async def _put(js: JetStreamContext, bucket: str, key: str, data: bytes, after: int) -> int | None:
    """Write a value behind the sequence that it follows (0: there is none) and return its own; None if overtaken."""
    headers = {EXPECTED_LAST: str(after)}
    with _broker_errors(f"{key!r} was not written to bucket {bucket!r}"):
        try:
            return (await js.publish(_subject(bucket, key), data, timeout=WRITE_S, headers=headers)).seq
        except nats.js.errors.APIError as exc:
            if exc.err_code == WRONG_SEQUENCE:
                return None
            raise


async def _read(js: JetStreamContext, key: str) -> tuple[bytes, int]:
    subject = _subject(broker.ROLLOUTS, key)
    with _broker_errors(f"rollout {key!r} cannot be read"):
        try:
            message = await js.get_msg(f"KV_{broker.ROLLOUTS}", subject=subject, direct=True)
        except nats.js.errors.NotFoundError as exc:
            name = key.partition(".")[2]
            raise StoreError(f"there is no rollout {name!r}; `fieldloop rollout list` shows those there are") from exc
    return message.data or b"", message.seq or 0


def _deleted(message: Msg) -> bool:
    return (message.headers or {}).get("KV-Operation") in DELETED


def _order(message: Msg) -> Desired | None:
    try:
        return msgspec.json.decode(message.data, type=Desired)
    except msgspec.MsgspecError:
        return None


def _with_devices(order: Desired, before: Held) -> Desired:
    """Carry on what a target was told of its devices."""
    if order.devices is not None or before.desired is None or before.desired.devices is None:
        return order
    return msgspec.structs.replace(order, devices=before.desired.devices)


def _groups(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + AT_ONCE] for start in range(0, len(keys), AT_ONCE))


def _subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"


def _key(message: Msg) -> str:
    """Return the key of `$KV.<bucket>.<key>`."""
    return message.subject.split(".", 2)[2]


@contextmanager
def _broker_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (nats.errors.Error, TimeoutError) as exc:
        raise StoreError(f"{what}: {exc or type(exc).__name__}; is `fieldloop up` running?") from exc
