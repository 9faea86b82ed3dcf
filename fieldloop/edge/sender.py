"""Sends what the spool holds to the platform, in order and many at a time, and books what the broker has stored."""

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.predictions import message_id
from fieldloop.edge.link import Link, Message
from fieldloop.edge.spool import Entry, Kind, Spool

IN_FLIGHT: Final = 1024  # messages without an answer, at most
ANSWER_S: Final = 10.0  # without any answer the connection is given up
SEARCHED: Final = 16 * IN_FLIGHT  # messages among which the last stored one is looked for; more cannot be under way
RETRY_S: Final = 2.0  # after the broker has refused a message
ASK_S: Final = 5.0
STREAMS: Mapping[Kind, str] = MappingProxyType({Kind.PREDICTIONS: "predictions", Kind.ALERT: "alerts"})
ID: Final = "Nats-Msg-Id"

logger = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    """What the broker says of a stored message."""

    error: dict[str, object] | None = None


class Sender:
    """The way out of the spool; without a connection (`detach`) all stays where it is."""

    def __init__(self, spool: Spool, target: str) -> None:
        self._spool = spool
        self._subjects = {kind: f"{stream}.{target}" for kind, stream in STREAMS.items()}
        self._link: Link | None = None
        self._sent = 0  # number of the newest that was sent over this connection
        self._open: dict[int, str] = {}  # replies that are awaited, by number
        self._answered_at = 0.0
        self._held = False  # the broker has refused one: wait before the next try

    async def attach(self, link: Link) -> None:
        """Go on over a new connection, behind what the broker already has.

        The broker knows a message again by its id for some minutes only. After a longer silence the last message that
        it stored of us says how far we came: we send in order.
        """
        for kind in Kind:
            await self._settle(link, kind)
        self._link, self._sent, self._held = link, self._spool.taken, False
        self._open.clear()
        self._answered_at = asyncio.get_running_loop().time()
        self.pump()

    def detach(self) -> None:
        """Stop sending."""
        self._link = None
        self._open.clear()

    def pump(self) -> None:
        """Send what may be sent now."""
        link = self._link
        if link is None or self._held or link.closed.is_set():
            return
        while room := IN_FLIGHT - len(self._open):
            entries = self._spool.entries(self._sent, room)
            if not entries:
                break
            for entry in entries:
                if not self._spool.has(entry.number):
                    self._send(link, entry)
            self._sent = entries[-1].number
        link.send_now()

    def check(self) -> None:
        """Give the connection up when the broker owes answers for too long."""
        now = asyncio.get_running_loop().time()
        if self._open and self._link is not None and now - self._answered_at > ANSWER_S:
            self._link.close(f"no answer to what was published for {ANSWER_S:g} s")

    def _send(self, link: Link, entry: Entry) -> None:
        if not self._open:
            self._answered_at = asyncio.get_running_loop().time()

        def answered(message: Message) -> None:
            self._answer(link, entry.number, message)

        headers = {ID: message_id(entry.data)}
        self._open[entry.number] = link.ask(self._subjects[entry.kind], entry.data, answered, headers)

    def _answer(self, link: Link, number: int, message: Message) -> None:
        if link is not self._link or self._open.pop(number, None) is None:
            return
        self._answered_at = asyncio.get_running_loop().time()
        trouble = _trouble(message)
        if trouble is None:
            self._spool.book(number)
            if len(self._open) <= IN_FLIGHT // 2 and self._sent < self._spool.last:
                self.pump()
        elif not self._held:
            logger.warning("predictions are not stored, tried again in %.0f s: %s", RETRY_S, trouble)
            self._hold(link)

    def _hold(self, link: Link) -> None:
        """Begin again, after a pause, at the first message that is not stored, so that order stays."""
        self._held = True
        for reply in self._open.values():
            link.forget(reply)
        self._open.clear()

        def go_on() -> None:
            if link is self._link:
                self._held, self._sent = False, self._spool.taken
                self.pump()

        asyncio.get_running_loop().call_later(RETRY_S, go_on)

    async def _settle(self, link: Link, kind: Kind) -> None:
        """Book all messages of a kind up to the last that the broker has stored of this target."""
        subject = self._subjects[kind]
        try:
            last = await link.request(f"$JS.API.DIRECT.GET.{STREAMS[kind]}.{subject}", b"", ASK_S)
        except ServiceError as exc:
            if link.closed.is_set():
                raise
            logger.debug("%s: the broker's ids alone keep repeats away: %s", subject, exc)
            return
        stored = last.header(ID)
        if stored is None:
            return
        waiting, after = [], self._spool.taken
        until = after + SEARCHED
        while after < until and (entries := self._spool.entries(after, IN_FLIGHT)):
            after = entries[-1].number
            for entry in entries:
                if entry.kind is kind:
                    waiting.append(entry.number)
                    if message_id(entry.data) == stored:
                        for number in waiting:
                            self._spool.book(number)
                        return


def _trouble(message: Message) -> str | None:
    """Return why the broker has not stored a message; None where it has."""
    if message.headers and (status := message.status):
        return "nothing takes them: is the stream there?" if status == "503" else f"status {status}"
    try:
        error = msgspec.json.decode(message.data, type=_Answer).error
    except msgspec.MsgspecError as exc:
        return f"an answer that is none: {exc}"
    return str(error.get("description", error)) if error else None
