"""Reads a pull consumer of JetStream from a connection of its own, whole buffers of messages at a time.

It speaks the few verbs of the NATS client protocol that this takes (https://docs.nats.io/reference/reference-protocols/nats-protocol)
over mutual TLS. A client that makes an object and a queue entry of every message reads an eighth of what this does.
"""

import json
import socket
import ssl
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from fieldloop.domain.errors import StoreError
from fieldloop.stores.settings import Certificate

PULL_MESSAGES: Final = 20_000  # messages of one pull request, at most
PULL_BYTES: Final = 32 << 20  # bytes of one pull request, at most; above the server's largest message
RECEIVE_BYTES: Final = 1 << 20  # read at once, at most
RECORD_BYTES: Final = 1 << 14  # of a TLS record, at most
CONNECT_S: Final = 5.0
SILENCE_S: Final = 60.0  # without a byte from a server that owes an answer

_OVER: Final = (b"404", b"408")  # status: no message is there, none came in time
_GO_ON: Final = (b"409",)  # status: the request's bytes are used up


@dataclass
class Pulled:
    """Messages as they came: subjects, acknowledgement subjects and payloads, one entry a message."""

    subjects: list[bytes] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    size: int = 0  # bytes of payload


class Puller:
    """One consumer's messages in order, over one connection that is not made again when it breaks.

    At most one request is open at a time, for as many messages as are still wanted, so nothing comes unasked and what
    waits in memory is bounded by the request.
    """

    def __init__(self, url: str, certificate: Certificate, stream: str, consumer: str) -> None:
        """Connect.

        Raises:
            StoreError: the broker does not answer, or refuses the certificate.
        """
        self._inbox = f"_INBOX.{uuid.uuid4().hex}".encode()
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}".encode()
        self._rest = b""
        self._open = 0  # messages that the server may still send for the request
        self._requests = 0
        self._reply = b""  # where the answers to the newest request go
        try:
            self._link = _connected(url, certificate, self._inbox)
        except (OSError, ValueError) as exc:
            raise StoreError(f"the broker at {url} cannot be read with certificate {certificate.cert}: {exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection, also under a thread that reads from it."""
        self._link.close()

    def read(self, into: Pulled, most: int, wait_s: float) -> bool:
        """Add what comes next, until a request is answered; return False where nothing came for `wait_s`.

        Args:
            into: takes the messages.
            most: messages to ask for, at most.
            wait_s: how long the server waits for messages; 0 asks for what is there.

        Raises:
            StoreError: the connection broke, or the server refuses.
        """
        had = len(into.payloads)
        self._request(min(most, PULL_MESSAGES), wait_s)
        deadline = time.monotonic() + wait_s + SILENCE_S
        while self._open > 0:
            data = self._rest + self._receive(deadline)
            self._rest = data[self._parse(data, into) :]
        return len(into.payloads) > had

    def _request(self, messages: int, wait_s: float) -> None:
        self._requests += 1
        self._reply = b"%b.%d" % (self._inbox, self._requests)
        self._open = messages
        asked: dict[str, Any] = {"batch": messages, "max_bytes": PULL_BYTES}
        asked |= {"expires": int(wait_s * 1e9)} if wait_s > 0 else {"no_wait": True}
        body = json.dumps(asked).encode()
        self._send(b"PUB %b %b %d\r\n%b\r\n" % (self._subject, self._reply, len(body), body))

    def _send(self, data: bytes) -> None:
        try:
            self._link.send(data)
        except OSError as exc:
            raise StoreError(f"the broker's connection broke: {exc}") from exc

    def _receive(self, deadline: float) -> bytes:
        """Return what has come, after the wait for its first byte."""
        try:
            data = self._link.receive(max(0.001, deadline - time.monotonic()))
        except OSError as exc:
            raise StoreError(f"the broker's connection broke: {exc or type(exc).__name__}") from exc
        if not data:
            raise StoreError("the broker closed the connection")
        return data

    def _parse(self, data: bytes, into: Pulled) -> int:
        """Take whole frames; return where the first that is not whole begins."""
        at, end_of_data, find = 0, len(data), data.find
        subjects, replies, payloads = into.subjects, into.replies, into.payloads
        while (line_end := find(b"\r\n", at)) >= 0:
            words = data[at:line_end].split()
            begin = line_end + 2
            if words[0] == b"MSG" or words[0] == b"HMSG":
                end = begin + int(words[-1])
                if end + 2 > end_of_data:
                    break
                if words[0] == b"HMSG":
                    if words[1].startswith(self._inbox):
                        if words[1] == self._reply:  # else of a request that was over already
                            self._status(data[begin:end])
                        at = end + 2
                        continue
                    begin += int(words[-2])
                subjects.append(words[1])
                replies.append(words[3])
                payloads.append(data[begin:end])
                into.size += end - begin
                self._open -= 1
                at = end + 2
            else:
                self._control(words[0], data[at:line_end])
                at = begin
        return at

    def _status(self, headers: bytes) -> None:
        """Take the server's word on a request: it is over."""
        first = headers.split(b"\r\n", 1)[0]
        code = first.split()[1] if b" " in first else b""
        if code not in (*_OVER, *_GO_ON):
            raise StoreError(f"the broker refuses a pull request: {first.decode(errors='replace')}")
        if code in _GO_ON and b"MaxBytes" not in first and b"Batch Completed" not in first:
            raise StoreError(f"the broker ends a pull request: {first.decode(errors='replace')}")
        self._open = 0

    def _control(self, verb: bytes, line: bytes) -> None:
        if verb == b"PING":
            self._send(b"PONG\r\n")
        elif verb == b"-ERR":
            raise StoreError(f"the broker refuses: {line.decode(errors='replace')}")


class _Link:
    """A TLS connection that takes all that the socket holds at once, however short the records are.

    The broker sends messages of some hundred bytes in records of a few messages; a socket of Python's own makes two
    calls of the system for each.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Shake hands.

        Raises:
            OSError: the connection broke, or one side refuses the other's certificate.
        """
        self._socket = plain
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        self._flush()

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def receive(self, wait_s: float) -> bytes:
        """Return what has come, after the wait for its first byte; nothing where the other side has closed."""
        parts: list[bytes] = []
        self._socket.settimeout(wait_s)
        while not parts and not self._came.eof:
            self._fill()
            self._decrypt(parts)
        return b"".join(parts)

    def close(self) -> None:
        """Close, also under a thread that receives."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _decrypt(self, parts: list[bytes]) -> None:
        """Add the whole records that are here."""
        read = self._tls.read
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while part := read(RECORD_BYTES):
                parts.append(part)

    def _fill(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if data:
            self._came.write(data)
        else:
            self._came.write_eof()

    def _flush(self) -> None:
        if self._goes.pending:
            self._socket.sendall(self._goes.read())


def _connected(url: str, certificate: Certificate, inbox: bytes) -> _Link:
    """Return a connection that has introduced itself: the server's INFO comes before TLS begins."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 4222
    context = ssl.create_default_context(cafile=str(certificate.ca))
    context.load_cert_chain(certificate.cert, certificate.key)
    plain = socket.create_connection((host, port), CONNECT_S)
    try:
        info = _line(plain)
        if not info.startswith(b"INFO"):
            raise ValueError(f"expected INFO, got {info[:80]!r}")
        link = _Link(plain, context, host)
    except BaseException:
        plain.close()
        raise
    options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "tls_required": True,
               "lang": "python", "version": "1", "protocol": 1, "name": "fieldloop-pull"}  # fmt: skip
    link.send(b"CONNECT %b\r\nSUB %b.* 1\r\nPING\r\n" % (json.dumps(options).encode(), inbox))
    answer = b""
    while b"PONG\r\n" not in answer:
        if b"-ERR" in answer or not (more := link.receive(CONNECT_S)):
            link.close()
            raise ValueError(answer.decode(errors="replace") or "the server closed the connection")
        answer += more
    return link


def _line(connection: socket.socket) -> bytes:
    """Read one line, a byte at a time: what follows it may be TLS."""
    line = bytearray()
    while not line.endswith(b"\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError("the server closed the connection")
        line += byte
    return bytes(line[:-2])
