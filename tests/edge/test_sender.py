"""The way out of the spool, against a broker that refuses, is silent, or knows already what is sent; it is played."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.predictions import message_id
from fieldloop.edge import sender
from fieldloop.edge.link import Link, Message, Take
from fieldloop.edge.sender import ANSWER_S, IN_FLIGHT, Sender
from fieldloop.edge.spool import Kind, Spool

STORED = b'{"stream":"predictions","seq":1}'
FULL = b'{"error":{"code":503,"description":"maximum bytes exceeded"}}'


@dataclass
class Broker:
    """A broker at the other end of the line: keeps what is sent, and answers when it is told to."""

    last: bytes | None = None  # the last message that it has stored of this target
    sent: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    _takes: dict[str, Take] = field(default_factory=dict)

    def ask(self, subject: str, data: bytes, take: Take, headers: Mapping[str, str]) -> str:
        """Take a message."""
        assert headers["Nats-Msg-Id"] == message_id(data)
        assert subject == "predictions.gw"
        self.sent.append(data)
        self._takes[str(len(self.sent))] = take
        return str(len(self.sent))

    def forget(self, reply: str) -> None:
        """Answer to nobody."""
        self._takes.pop(reply, None)

    def send_now(self) -> None:
        """Do nothing: all is here at once."""

    def close(self, reason: str) -> None:
        """End."""
        self.reason = reason
        self.closed.set()

    async def request(self, subject: str, _data: bytes, _wait_s: float) -> Message:
        """Say which message was stored last."""
        if self.last is None or "predictions" not in subject:
            raise ServiceError("no message found")
        return Message("", "", f"NATS/1.0\r\nNats-Msg-Id: {message_id(self.last)}\r\n\r\n".encode(), self.last, 0.0)

    def answer(self, data: bytes) -> None:
        """Answer the oldest message that waits."""
        name = next(iter(self._takes))
        self._takes.pop(name)(Message("", "", b"", data, 0.0))


def _numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(1, count + 1)]


def _play(folder: Path, count: int, act: Callable[[Broker, Spool, Sender], object], last: bytes | None = None) -> None:
    """Attach a sender, whose spool holds so many messages, to a broker; then act, in the event loop."""

    async def run() -> None:
        spool, broker = Spool(folder, 1 << 20), Broker(last)
        spool.add(Kind.PREDICTIONS, _numbered(count))
        own = Sender(spool, "gw")
        await own.attach(cast(Link, broker))
        done = act(broker, spool, own)
        if asyncio.iscoroutine(done):
            await done

    asyncio.run(run())


def test_no_more_than_may_be_under_way_is_sent(tmp_path: Path) -> None:
    """The rest goes as answers come, in order."""

    def act(broker: Broker, spool: Spool, _: Sender) -> None:
        assert len(broker.sent) == IN_FLIGHT
        for _ in range(IN_FLIGHT + 5):
            broker.answer(STORED)
        assert broker.sent == _numbered(IN_FLIGHT + 5)
        assert spool.taken == IN_FLIGHT + 5

    _play(tmp_path, IN_FLIGHT + 5, act)


def test_what_is_refused_is_sent_again_with_all_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is full takes nothing for a while; the order stays."""
    monkeypatch.setattr(sender, "RETRY_S", 0.01)

    async def act(broker: Broker, spool: Spool, _: Sender) -> None:
        broker.answer(STORED)
        broker.answer(FULL)
        assert spool.taken == 1
        assert len(broker.sent) == 4
        async with asyncio.timeout(10):
            while len(broker.sent) < 7:
                await asyncio.sleep(0.005)
        assert broker.sent == [b"1", b"2", b"3", b"4", b"2", b"3", b"4"]
        for _ in range(3):
            broker.answer(STORED)
        assert spool.taken == 4

    _play(tmp_path, 4, act)


def test_what_was_stored_before_the_line_broke_is_not_sent_again(tmp_path: Path) -> None:
    """The broker's last message says how far it came, though its answers were lost and its ids are forgotten."""

    def act(broker: Broker, spool: Spool, _: Sender) -> None:
        assert spool.taken == 3
        assert broker.sent == [b"4", b"5"]

    _play(tmp_path, 5, act, last=b"3")


def test_a_broker_that_owes_answers_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is open and dead; as long as it answers something it is waited for."""

    def act(broker: Broker, _: Spool, own: Sender) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        monkeypatch.setattr(loop, "time", lambda: began + ANSWER_S - 1)
        broker.answer(STORED)
        monkeypatch.setattr(loop, "time", lambda: began + ANSWER_S + 1)
        own.check()
        assert not broker.closed.is_set()
        monkeypatch.setattr(loop, "time", lambda: began + 2 * ANSWER_S)
        own.check()
        assert broker.reason == f"no answer to what was published for {ANSWER_S:g} s"

    _play(tmp_path, 2, act)
