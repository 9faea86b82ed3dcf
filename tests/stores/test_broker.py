"""Draining the real broker: every message whole and in order, whatever is in it, and acknowledged after its commit."""

import asyncio
from collections.abc import Sequence

import pytest

from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Messages
from fieldloop.stores import broker, drain
from fieldloop.stores.pull import Pulled, Puller
from fieldloop.stores.settings import Settings

SUBJECT = "devices.B1.readings"
AWKWARD = [
    (b"", None),
    (b"\r\n", None),
    (b"1\r\nMSG devices.B1.readings 1 $JS.ACK.x 3\r\nabc\r\nPING\r\n", None),
    (b"with headers", {"Nmqtt-Pub": "1", "Note": "two"}),
    (bytes(range(256)) * 4096, None),
    (b"last", None),
]


async def _publish(settings: Settings, messages: Sequence[tuple[bytes, dict[str, str] | None]]) -> int:
    """Publish, and return the position before the first."""
    async with broker.platform(settings) as (_, js):
        before = (await js.stream_info(broker.READINGS)).state.last_seq
        for payload, headers in messages:
            await js.publish(SUBJECT, payload, headers=headers)
        return before


async def _acknowledged(settings: Settings) -> int:
    async with broker.platform(settings) as (_, js):
        floor = (await js.consumer_info(broker.READINGS, "test")).ack_floor
        return floor.stream_seq if floor else 0


def _drain(settings: Settings, after: int) -> list[tuple[int, bytes]]:
    got: list[tuple[int, bytes]] = []

    def commit(messages: Messages) -> None:
        got.extend(zip(messages.sequence.tolist(), messages.payloads, strict=True))

    drain.drain(settings, broker.READINGS, "test", after, lambda messages, _: messages, commit)
    return got


def test_awkward_payloads_arrive_as_they_were_sent(nats: Settings) -> None:
    """Line ends, frames inside payloads, headers, a megabyte, nothing: all of it whole, and in order."""
    before = asyncio.run(_publish(nats, AWKWARD))
    expected = [(before + 1 + place, payload) for place, (payload, _) in enumerate(AWKWARD)]
    assert _drain(nats, before) == expected
    assert asyncio.run(_acknowledged(nats)) == expected[-1][0]
    assert _drain(nats, before + 4) == expected[4:]


def test_more_bytes_than_a_request_or_a_batch_takes(nats: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large messages come in several requests and commits, none is left out."""
    monkeypatch.setattr("fieldloop.stores.pull.PULL_BYTES", 9 << 20)
    before = asyncio.run(_publish(nats, [(bytes([place]) * (1 << 20), None) for place in range(30)]))
    got = _drain(nats, before)
    assert [sequence for sequence, _ in got] == list(range(before + 1, before + 31))
    assert [(payload[0], len(payload)) for _, payload in got] == [(place, 1 << 20) for place in range(30)]


def test_a_failed_commit_ends_the_drain_and_acknowledges_nothing(nats: Settings) -> None:
    """The error comes through at once, though the next batch is being read."""
    before = asyncio.run(_publish(nats, AWKWARD))

    def fail(_: Messages) -> None:
        raise StoreError("the lake is away")

    with pytest.raises(StoreError, match="the lake is away"):
        drain.drain(nats, broker.READINGS, "test", before, lambda messages, _: messages, fail, quiet_s=30)
    assert asyncio.run(_acknowledged(nats)) <= before


def test_consumer_that_is_not_there_is_an_error(nats: Settings) -> None:
    """Nobody answers a request for messages of an unknown consumer: said, not waited for."""
    certificate = nats.certificate("platform", "platform")
    with (
        Puller(nats.nats_endpoint, certificate, broker.READINGS, "nobody") as puller,
        pytest.raises(StoreError, match="503"),
    ):
        puller.read(Pulled(), 1, 1.0)


def test_the_late_end_of_a_request_does_not_end_the_next(nats: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker says that a request is complete after its last message, now and then when the next one is made."""
    before = asyncio.run(_publish(nats, [(b"%d" % place, None) for place in range(6)]))
    request = Puller._request

    def late(puller: Puller, messages: int, wait_s: float) -> None:
        ended = puller._reply
        request(puller, messages, wait_s)
        if ended:
            status = b"NATS/1.0 409 Batch Completed\r\n\r\n"
            puller._rest = b"HMSG %b 1 %d %d\r\n%b\r\n" % (ended, len(status), len(status), status) + puller._rest

    monkeypatch.setattr(Puller, "_request", late)
    monkeypatch.setattr("fieldloop.stores.pull.PULL_MESSAGES", 2)
    assert [payload for _, payload in _drain(nats, before)] == [b"%d" % place for place in range(6)]
