"""The agent of one edge target: converges to the desired release, scores readings, reports what it runs.

One outbound connection to the platform, made anew when it breaks. Over it: reconcile, report, and what the spool holds.
Readings come over it too, or from a broker on the gateway; then scoring goes on without it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from fieldloop.domain.enrolment import AgentConfig, LocalReadings, decode_config
from fieldloop.domain.errors import ServiceError
from fieldloop.edge import files, local
from fieldloop.edge.feed import Feed
from fieldloop.edge.health import Endpoint
from fieldloop.edge.link import Link
from fieldloop.edge.reconcile import Reconciler
from fieldloop.edge.renewal import Renewal, connect
from fieldloop.edge.report import Reporter
from fieldloop.edge.scorer import Scorer
from fieldloop.edge.scoring import Scoring
from fieldloop.edge.sender import Sender
from fieldloop.edge.serving import Serving
from fieldloop.edge.slots import Slots
from fieldloop.edge.spool import Spool

RECONNECT_S: Final = (0.5, 2.5)  # pause between connection attempts, drawn for each

logger = logging.getLogger(__name__)


class Agent:
    """One edge target's agent; `run` until stopped."""

    def __init__(self, config: AgentConfig, path: Path) -> None:
        folder = path.parent
        state = folder / config.state
        self._config = config
        self._path = path
        self._folder = folder
        self._state = state
        slots, spool = Slots(state), Spool(state / "spool", config.spool_bytes)
        self._serving = Serving()
        self._sender = Sender(spool, config.target)
        self._reconciler = Reconciler(config, folder, slots, self._serving)
        self._scorer = Scorer(config.target, config.devices)
        self._scoring = Scoring(config.target, self._scorer, self._serving, spool, self._sender, state)
        self._scoring.watch = self._reconciler.watch
        self._reconciler.assign = self._assign
        self._renewal = Renewal(config, path)
        self._reporter = Reporter(config, state, self._serving, slots, spool, self._reconciler, self._renewal)
        self._endpoint = Endpoint(self._reporter.report, lambda: self._link is not None)
        self._link: Link | None = None
        self._moved = asyncio.Event()  # other devices are served

    async def run(self, stop: asyncio.Event) -> None:
        """Load what is installed, then serve until `stop`, over as many connections as it takes."""
        await self._reconciler.load_installed()
        self._scoring.restore()
        await self._endpoint.open(self._config.health_port, self._state / "health.port")
        watching = asyncio.create_task(self._reconciler.watch_loop())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._again(self._platform, stop))
                if self._config.readings is not None:
                    group.create_task(self._again(self._gateway, stop))
        finally:
            watching.cancel()
            self._endpoint.close()
        logger.info("stopped")

    async def _again(self, serve: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
        """Serve until `stop`, a connection after the other."""
        while not stop.is_set():
            try:
                await serve(stop)
            except ServiceError as exc:
                logger.warning("broker: %s", exc)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), random.uniform(*RECONNECT_S))  # noqa: S311 - jitter

    async def _platform(self, stop: asyncio.Event) -> None:
        """Connect to the platform and work with it until the connection ends."""
        config = self._config
        connecting = asyncio.ensure_future(connect(config, self._folder, config.target))
        await _first(connecting, asyncio.ensure_future(stop.wait()))
        if connecting.cancelled() or not connecting.done():
            return
        link = connecting.result()
        logger.info("connected to %s", config.broker)
        self._link = link
        self._reconciler.changed.set()
        link.at_end(lambda: setattr(self, "_link", None))
        loops = [
            asyncio.create_task(self._reconciler.run(link)),
            asyncio.create_task(self._reporter.run(link)),
            asyncio.create_task(self._renewal.run(link, self._reconciler.changed)),
        ]
        try:
            await self._sender.attach(link)
            await self._work(link, stop)
            with suppress(ServiceError):
                await link.flush()
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            self._sender.detach()
            link.close()

    def _assign(self, devices: Mapping[str, str]) -> None:
        """Serve these devices from now on, over new connections."""
        if devices == self._config.devices:
            return
        logger.info("devices served: %s", ", ".join(devices) or "none")
        kept = decode_config(self._path.read_bytes(), str(self._path))  # somebody may have changed other fields
        kept = msgspec.structs.replace(kept, devices=dict(devices))
        files.write_private(self._path, msgspec.json.format(msgspec.json.encode(kept), indent=2))
        self._config = msgspec.structs.replace(self._config, devices=dict(devices))
        self._scorer.devices = self._config.devices
        self._moved.set()
        if self._link is not None and self._config.readings is None:
            self._link.close("other devices are served")

    async def _work(self, link: Link, stop: asyncio.Event) -> None:
        """Score what the platform's stream brings, or just send what is spooled."""
        if self._config.readings is None and self._config.devices:
            await self._scoring.run(Feed(link, self._config.target, self._config.redelivery_s), stop)
        else:
            await _first(asyncio.ensure_future(link.closed.wait()), asyncio.ensure_future(stop.wait()))
            if link.closed.is_set():
                raise ServiceError(link.reason)

    async def _gateway(self, stop: asyncio.Event) -> None:
        """Connect to the gateway's own broker and score what it brings until the connection ends."""
        readings = self._config.readings
        assert isinstance(readings, LocalReadings)  # noqa: S101 - `run` has looked
        ended = asyncio.Event()
        self._moved.clear()
        waiting = asyncio.create_task(_set_after(ended, stop, self._moved))
        try:
            if not self._config.devices:
                await ended.wait()
                return
            source = await local.open_source(self._config, readings, self._folder)
            logger.info("readings come from %s", readings.url)
            try:
                await self._scoring.run(source, ended)
            finally:
                source.end()
        finally:
            waiting.cancel()


async def _set_after(event: asyncio.Event, *others: asyncio.Event) -> None:
    """Set an event when one of others is set."""
    await _first(*(asyncio.ensure_future(other.wait()) for other in others))
    event.set()


async def _first(*works: asyncio.Future[Any]) -> None:
    """Wait until one is done; cancel the others."""
    try:
        await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for work in works:
            work.cancel()
