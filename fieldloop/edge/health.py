"""Health and metrics on a loopback port: `GET /health` (200 or 503, JSON) and `GET /metrics` (Prometheus' text format).

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fieldloop.domain.rollout import Reported
from fieldloop.domain.sketch import Sketch
from fieldloop.edge import files

REQUEST_BYTES: Final = 4096  # of a request's head, at most
REQUEST_S: Final = 5.0
QUANTILES: Final = (0.5, 0.9, 0.99)

logger = logging.getLogger(__name__)


class Health(msgspec.Struct, frozen=True):
    """Whether the agent does its work, and why not."""

    well: bool
    reason: str | None
    connected: bool
    release: str | None
    scored: int
    errors: int
    spooled: int


class Endpoint:
    """The server, open between `open` and `close`."""

    def __init__(self, report: Callable[[], Reported], connected: Callable[[], bool]) -> None:
        self._report = report
        self._connected = connected
        self._server: asyncio.Server | None = None

    async def open(self, port: int, noted: Path) -> None:
        """Listen on a port, any where it is 0, and write its number to a file; a taken port is no reason to stop."""
        try:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=REQUEST_BYTES)
            files.write(noted, str(self._server.sockets[0].getsockname()[1]).encode())
        except OSError as exc:
            logger.warning("no health endpoint on port %d: %s", port, exc)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def health(self) -> Health:
        """Return the state of health."""
        report, connected = self._report(), self._connected()
        reason = report.error
        if report.running is None and report.attempted:
            reason = reason or "no release runs"
        running = report.running.release if report.running else None
        return Health(reason is None, reason, connected, running, report.scored, report.errors, report.spool.waiting)

    def metrics(self) -> str:
        """Return the metrics."""
        return "".join(f"{line}\n" for line in _lines(self._report(), connected=self._connected()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._respond(head.split(b" ")[:2]))
                await writer.drain()
        writer.close()

    def _respond(self, words: list[bytes]) -> bytes:
        if words == [b"GET", b"/metrics"]:
            return _response("200 OK", "text/plain; version=0.0.4; charset=utf-8", self.metrics().encode())
        if words == [b"GET", b"/health"]:
            health = self.health()
            status = "200 OK" if health.well else "503 Service Unavailable"
            return _response(status, "application/json", msgspec.json.encode(health))
        return _response("404 Not Found", "text/plain", b"GET /health or /metrics\n")


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _lines(report: Reported, *, connected: bool) -> Iterator[str]:
    running, served, spool = report.running, report.served, report.spool
    yield from _metric("connected", "gauge", "Whether the platform is reached.", int(connected))
    well = running is not None and not report.error
    yield from _metric("healthy", "gauge", "Whether a release runs without trouble.", int(well))
    if running is not None:
        labels = f'{{model="{running.model}",version="{running.version}",release="{running.release}"}}'
        yield from _metric("release_info", "gauge", "The release that runs.", 1, labels)
    yield from _metric("windows_total", "counter", "Windows scored since the start.", report.scored)
    yield from _metric("errors_total", "counter", "Messages, records and windows that failed.", report.errors)
    yield from _metric("spool_waiting", "gauge", "Messages that wait for the platform.", spool.waiting)
    yield from _metric("spool_bytes", "gauge", "Bytes of the spool.", spool.bytes)
    yield from _metric("spool_dropped_total", "counter", "Messages that a full spool refused.", spool.dropped)
    yield from _metric("free_bytes", "gauge", "Bytes free on the disk of releases.", report.inventory.free_bytes)
    if served is not None:
        yield from _metric("resident_bytes", "gauge", "Resident memory.", served.memory_bytes)
        yield from _metric("restarts_total", "counter", "Starts with this release beyond the first.", served.restarts)
        yield from _summary("latency_seconds", "From a reading received to its prediction published.", served.latency)
    if report.shadow is not None:
        yield from _metric("shadow_windows_total", "counter", "Windows that the shadow scored.", report.shadow.windows)
        yield from _metric("shadow_errors_total", "counter", "Windows that it failed on.", report.shadow.errors)
        yield from _summary("shadow_gap", "Its prediction minus the published one.", report.shadow.gaps)


def _metric(name: str, kind: str, text: str, value: float, labels: str = "") -> Iterator[str]:
    yield f"# HELP fieldloop_agent_{name} {text}"
    yield f"# TYPE fieldloop_agent_{name} {kind}"
    yield f"fieldloop_agent_{name}{labels} {value}"


def _summary(name: str, text: str, sketch: Sketch) -> Iterator[str]:
    yield f"# HELP fieldloop_agent_{name} {text}"
    yield f"# TYPE fieldloop_agent_{name} summary"
    for share in QUANTILES:
        yield f'fieldloop_agent_{name}{{quantile="{share}"}} {sketch.quantile(share):g}'
    total = sketch.mean() * sketch.count if sketch.count else 0.0
    yield f"fieldloop_agent_{name}_sum {total:g}"
    yield f"fieldloop_agent_{name}_count {sketch.count}"
