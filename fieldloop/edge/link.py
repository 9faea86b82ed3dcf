"""One connection to a NATS server: the few verbs of its client protocol that an agent takes, over asyncio and TLS.

A connection that breaks is not mended: `closed` says so, and the agent opens another. A general client costs an agent
14 MB and a task switch a message (docs/adr/0021). Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

import asyncio
import itertools
import logging
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from fieldloop.domain.errors import ServiceError

CONNECT_S: Final = 5.0  # from the first packet to the server's consent
PING_S: Final = 20.0  # between two questions whether the server is there
PINGS_OPEN: Final = 2  # so many unanswered ones are the end

logger = logging.getLogger(__name__)


class Message(msgspec.Struct, frozen=True, gc=False):
    """What the server delivers; `headers` as they came, `received` on the monotonic clock, seconds."""

    subject: str
    reply: str
    headers: bytes
    data: bytes
    received: float

    @property
    def status(self) -> str | None:
        """The status that a message of the server itself carries, for instance `404`; None for others."""
        line = self.headers.split(b"\r\n", 1)[0].split(b" ", 2)
        return line[1].decode() if len(line) > 1 and line[1] else None

    def header(self, name: str) -> str | None:
        """Return a header's value, None where there is none."""
        start = f"{name}:".lower()
        lines = self.headers.decode(errors="replace").split("\r\n")
        return next((line.partition(":")[2].strip() for line in lines if line.lower().startswith(start)), None)


Take = Callable[[Message], None]


class Link(asyncio.Protocol):
    """An open connection; made by `connect`."""

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox  # subjects beneath it are this connection's own
        self.closed = asyncio.Event()
        self.reason = "closed"  # why it is closed
        self._transport: asyncio.Transport | None = None
        self._info: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._info.add_done_callback(_retrieve)
        self._rest = b""
        self._out: list[bytes] = []
        self._subscriptions: dict[bytes, Take] = {}
        self._replies: dict[str, Take] = {}
        self._pongs: list[asyncio.Future[None]] = []
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._at_end: list[Callable[[], object]] = []

    # What an agent does with it.

    def publish(self, subject: str, data: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Send a message; it leaves with the next turn of the event loop, or with `send_now`."""
        to = f"{subject} {reply}" if reply else subject
        if headers:
            head = "".join(["NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"])
            line = f"HPUB {to} {len(head)} {len(head) + len(data)}\r\n{head}"
        else:
            line = f"PUB {to} {len(data)}\r\n"
        self._send(line.encode(), data, b"\r\n")

    def ask(self, subject: str, data: bytes, take: Take, headers: Mapping[str, str] | None = None) -> str:
        """Send a message and have its answer taken; return the name under which `forget` gives up on it."""
        reply = f"{self.inbox}.r.{next(self._numbers)}"
        self._replies[reply] = take
        self.publish(subject, data, reply, headers)
        return reply

    def forget(self, reply: str) -> None:
        """Take no answer any more."""
        self._replies.pop(reply, None)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> Message:
        """Send a message and return its answer.

        Raises:
            ServiceError: none comes in time, nobody listens, or the connection ends.
        """
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        reply = self.ask(subject, data, lambda message: None if answer.done() else answer.set_result(message))
        ended = asyncio.ensure_future(self.closed.wait())
        awaited: set[asyncio.Future[Any]] = {answer, ended}
        try:
            await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            self.forget(reply)
        if not answer.done():
            raise ServiceError(f"{subject}: {self.reason if self.closed.is_set() else f'no answer in {timeout_s:g} s'}")
        if answer.result().status == "503":
            raise ServiceError(f"{subject}: nobody listens")
        return answer.result()

    def subscribe(self, subject: str, take: Take) -> int:
        """Have messages of a subject taken; return the subscription's number."""
        number = next(self._numbers)
        self._subscriptions[b"%d" % number] = take
        self._send(f"SUB {subject} {number}\r\n".encode())
        return number

    def unsubscribe(self, number: int) -> None:
        """Take no more of a subscription's messages."""
        self.stop(number)
        self._subscriptions.pop(b"%d" % number, None)

    def stop(self, number: int) -> None:
        """End a subscription; what is on its way, up to the next `flush`, is still taken."""
        self._send(b"UNSUB %d\r\n" % number)

    async def flush(self, timeout_s: float = CONNECT_S) -> None:
        """Wait until the server has seen all that was sent.

        Raises:
            ServiceError: the connection ends, or no answer comes in time.
        """
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self._send(b"PING\r\n")
        try:
            await asyncio.wait_for(pong, timeout_s)
        except TimeoutError as exc:
            raise ServiceError(f"the broker does not answer within {timeout_s:g} s") from exc

    def at_end(self, call: Callable[[], object]) -> None:
        """Have something called when the connection ends."""
        self._at_end.append(call)

    def send_now(self) -> None:
        """Hand what was published over to the system, without waiting for the event loop's turn."""
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def close(self, reason: str = "closed") -> None:
        """End the connection."""
        self.reason = reason if not self.closed.is_set() else self.reason
        self.send_now()
        if self._transport is not None:
            self._transport.abort() if reason != "closed" else self._transport.close()
        self.connection_lost(None)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let all who wait know."""
        if self.closed.is_set():
            return
        self.reason = f"connection lost: {exc}" if exc else self.reason
        self.closed.set()
        for call in self._at_end:
            call()
        if self._timer is not None:
            self._timer.cancel()
        waiting: list[asyncio.Future[None]] = [*self._pongs]
        if not self._info.done():
            self._info.set_exception(ServiceError(self.reason))
        for future in waiting:
            if not future.done():
                future.set_exception(ServiceError(self.reason))

    def data_received(self, data: bytes) -> None:
        """Take whole frames; keep what is left."""
        now = time.monotonic()
        data = self._rest + data if self._rest else data
        at, size = 0, len(data)
        while (line_end := data.find(b"\r\n", at)) >= 0:
            words = data[at:line_end].split()
            begin = line_end + 2
            if words and words[0] in (b"MSG", b"HMSG"):
                end = begin + int(words[-1])
                if end + 2 > size:
                    break
                self._deliver(words, data, begin, end, now)
                at = end + 2
            else:
                self._control(words[0] if words else b"", data[at:line_end])
                at = begin
        self._rest = data[at:]

    # Inside.

    def _deliver(self, words: list[bytes], data: bytes, begin: int, end: int, now: float) -> None:
        middle = begin + int(words[-2]) if words[0] == b"HMSG" else begin
        counts = 2 if words[0] == b"HMSG" else 1
        reply = words[3].decode() if len(words) == 4 + counts else ""
        message = Message(words[1].decode(), reply, data[begin:middle], data[middle:end], now)
        take = self._replies.pop(message.subject, None) or self._subscriptions.get(words[2])
        if take is not None:
            take(message)

    def _control(self, verb: bytes, line: bytes) -> None:
        if verb == b"PING":
            self._send(b"PONG\r\n")
        elif verb == b"PONG":
            if self._pongs and not (pong := self._pongs.pop(0)).done():
                pong.set_result(None)
        elif verb == b"INFO":
            if not self._info.done():
                self._info.set_result(line)
        elif verb == b"-ERR":
            self.reason = f"the broker refuses: {line[5:].decode(errors='replace').strip()}"
            logger.warning("%s", self.reason)

    def _send(self, *parts: bytes) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self.send_now)
        self._out.extend(parts)

    async def _introduce(self, host: str, tls: ssl.SSLContext | None, user: Mapping[str, str], name: str) -> None:
        """Answer the server's INFO: TLS first, then who we are."""
        await self._info
        loop = asyncio.get_running_loop()
        if tls is not None and self._transport is not None:
            upgraded = await loop.start_tls(self._transport, self, tls, server_hostname=host)
            if upgraded is None:
                raise ServiceError(f"TLS with {host} ended: {self.reason}")
            self._transport = upgraded
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "protocol": 1,
                   "lang": "python", "version": "1", "name": name, "tls_required": tls is not None, **user}  # fmt: skip
        self._send(b"CONNECT %b\r\n" % msgspec.json.encode(options))
        await self.flush()
        self.subscribe(f"{self.inbox}.r.*", _ignore)  # late answers
        self._watch()

    def _watch(self) -> None:
        """Ask now and then whether the server is there: a dead network says nothing."""
        if len(self._pongs) >= PINGS_OPEN:
            self.close(f"the broker has not answered for {PING_S * PINGS_OPEN:g} s")
            return
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pong.add_done_callback(_retrieve)
        self._pongs.append(pong)
        self._send(b"PING\r\n")
        self._timer = asyncio.get_running_loop().call_later(PING_S, self._watch)


async def connect(
    url: str, name: str, inbox: str, tls: ssl.SSLContext | None, user: Mapping[str, str] | None = None
) -> Link:
    """Return an open connection.

    Args:
        url: `tls://host:port` or `nats://host:port`.
        name: what the server calls this connection in its monitoring.
        inbox: a subject; what is beneath it are answers to this connection.
        tls: None connects in the clear.
        user: further options of CONNECT, such as `user` and `pass`.

    Raises:
        ServiceError: the server does not answer, or refuses.
    """
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 4222
    link = Link(inbox)
    try:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().create_connection(lambda: link, host, port)
            await link._introduce(host, tls, user or {}, name)
    except TimeoutError as exc:
        link.close("no consent")
        raise ServiceError(f"the broker at {url} does not answer within {CONNECT_S:g} s") from exc
    except (OSError, ServiceError) as exc:
        link.close("no consent")
        raise ServiceError(f"the broker at {url} cannot be used: {exc}") from exc
    except BaseException:
        link.close("no consent")
        raise
    return link


def own_inbox(name: str) -> str:
    """Return a subject for a connection's answers that none of its peers can guess: who could, could forge answers."""
    return f"_INBOX.{name}.{secrets.token_hex(8)}"


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Look at how a future ended for which nobody may wait, so that asyncio does not complain of it."""
    if not done.cancelled():
        done.exception()


def _ignore(_: Message) -> None:
    """Take an answer for which nobody waits any more."""
