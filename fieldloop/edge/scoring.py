"""The score loop: readings in, predictions out, and now and then a checkpoint.

A prediction goes out at once. What makes it safe comes behind, off the hot path: the spool and the streams' state are
made durable together, and only then are the readings acknowledged. A kill before that has them delivered again, and
what had been spooled is not predicted twice.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from fieldloop.domain.errors import PayloadError, ReleaseError, ServiceError
from fieldloop.edge import files
from fieldloop.edge.feed import Batch, OutOfOrder, Position
from fieldloop.edge.model import Loaded
from fieldloop.edge.scorer import Alarms, Scorer, Windows, pack
from fieldloop.edge.sender import Sender
from fieldloop.edge.serving import Serving
from fieldloop.edge.spool import Kind, Spool

TAKE_S: Final = 0.5  # longest wait for messages before looking whether to stop
CHECKPOINT_S: Final = 2.0  # between two checkpoints, at most: they sync, which holds up whoever writes to that disk
CHECKPOINTS: Final = 8  # at least so many before what is not acknowledged comes again
CHECK_S: Final = 2.0  # between two looks for answers that the broker owes
STUCK_S: Final = 0.5  # between two tries of a release that fails
_SPOOLED: Final = 4096  # messages read at once after a restart

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where readings come from: the platform's stream, or a broker on the gateway."""

    @property
    def eager(self) -> bool:
        """Whether it waits for acknowledgements, so that a checkpoint should follow each batch."""

    @property
    def rest_s(self) -> float:
        """Seconds after which what was not acknowledged comes again."""

    @property
    def gone(self) -> str | None:
        """Why nothing more will come; None as long as something may."""

    async def take(self, position: Position, wait_s: float) -> Batch | None:
        """Wait for the next messages; raises OutOfOrder where some are missing."""

    def acknowledge(self, reply: str) -> None:
        """Acknowledge a batch and all before it."""

    def drop(self) -> None:
        """Forget what came."""

    async def close(self, position: Position) -> Batch | None:
        """Take no more; return what was on its way."""


class Scoring:
    """The loop's state between connections."""

    def __init__(
        self, target: str, scorer: Scorer, serving: Serving, spool: Spool, sender: Sender, state: Path
    ) -> None:
        self._target = target
        self._alarms = Alarms(target)
        self._scorer = scorer
        self._serving = serving
        self._spool = spool
        self._sender = sender
        self._state = state / "streams.msgpack"
        self._reply: str | None = None  # acknowledges all that was dealt with
        self._dirty = False  # something was dealt with since the last checkpoint
        self._stuck = False  # in the middle of a batch
        self._saving = asyncio.Lock()
        self._dealt = asyncio.Event()
        self.watch: Callable[[], Awaitable[None]] | None = None  # looks after the running release when it fails

    def restore(self) -> None:
        """Go on where the last checkpoint was; without one, windows begin anew."""
        state = files.read_or_none(self._state)
        if state is None:
            return
        try:
            after = self._scorer.restore(state)
            while entries := self._spool.kept(after, _SPOOLED):  # their mark may be newer than the state
                self._scorer.leave_out([entry.data for entry in entries if entry.kind is Kind.PREDICTIONS])
                after = entries[-1].number
        except (msgspec.MsgspecError, PayloadError, ValueError) as exc:
            logger.error("stream state is not usable, windows begin anew: %s", exc)

    async def run(self, source: Source, ended: asyncio.Event) -> None:
        """Score what comes until the end; then deal with what is on its way.

        Raises:
            ServiceError: the source is gone.
        """
        checkpoints = asyncio.create_task(self._checkpoints(source))
        self._reply = None
        try:
            while not ended.is_set():
                await self._turn(source, ended)
            if self._serving.loaded is not None and not self._stuck:
                with contextlib.suppress(OutOfOrder):
                    await self._deal_with(await source.close(self._scorer.position), ended)
                await self.checkpoint(source)
        finally:
            async with self._saving:
                checkpoints.cancel()

    async def checkpoint(self, source: Source) -> None:
        """Make durable what was dealt with, then acknowledge it; where the disk refuses, it stays unacknowledged."""
        async with self._saving:
            if not self._dirty or self._stuck or not self._spool.durable:
                return
            reply, spooled = self._reply, self._spool.last
            state = self._scorer.state(spooled)
            self._dirty = False
            try:
                await asyncio.to_thread(self._save, state)
            except OSError as exc:
                self._dirty = True
                logger.warning("nothing is acknowledged until the disk takes the state: %s", exc)
                return
            if reply is not None:
                source.acknowledge(reply)
            self._spool.trim(spooled)

    async def _turn(self, source: Source, ended: asyncio.Event) -> None:
        if self._serving.loaded is None or self._spool.congested:
            await _pause(ended, TAKE_S)
            if source.gone is not None:  # nobody takes from it now, who would notice
                raise ServiceError(source.gone)
            return
        try:
            await self._deal_with(await source.take(self._scorer.position, TAKE_S), ended)
        except OutOfOrder as exc:
            logger.warning("readings are taken again in %.0f s: %s", source.rest_s, exc)
            source.drop()
            await _pause(ended, source.rest_s)

    async def _deal_with(self, batch: Batch | None, ended: asyncio.Event) -> None:
        loaded = self._serving.loaded
        if batch is None or loaded is None:
            return
        windows = self._scorer.take(loaded.manifest, batch.fresh, batch.position)
        self._stuck = True
        if len(windows) and not await self._predict(windows, ended):
            return
        self._serving.refuse(windows.errors)
        self._reply = batch.reply
        self._dirty, self._stuck = True, False
        self._dealt.set()

    async def _predict(self, windows: Windows, ended: asyncio.Event) -> bool:
        """Predict and publish; a release that fails is tried again, or another in its place, until the end."""
        while not ended.is_set():
            loaded = self._serving.loaded
            if loaded is not None and windows.values.shape[1:] != _shape(loaded):
                self._serving.refuse(len(windows))  # of a release that is gone
                return True
            try:
                value = self._serving.predict(windows)
            except ReleaseError as exc:
                logger.warning("windows wait: %s", exc)
                if self.watch is not None:
                    await self.watch()
                await _pause(ended, STUCK_S)
                continue
            assert loaded is not None  # noqa: S101 - it has just predicted
            alerts = self._alarms.of(loaded.digest, loaded.manifest, windows, value)
            self._spool.add(Kind.PREDICTIONS, pack(self._target, loaded.digest, windows, value))
            if alerts:
                self._spool.add(Kind.ALERT, alerts)
            self._sender.pump()
            self._serving.count(windows, value)
            return True
        return False

    async def _checkpoints(self, source: Source) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._dealt.wait()
            if not source.eager:
                await asyncio.sleep(min(CHECKPOINT_S, source.rest_s / CHECKPOINTS))
            self._dealt.clear()
            await self.checkpoint(source)
            self._sender.check()

    def _save(self, state: bytes) -> None:
        self._spool.sync()
        files.write_atomic(self._state, state)


def _shape(loaded: Loaded) -> tuple[int, int]:
    window = loaded.manifest.window
    return window.rows, window.length


async def _pause(ended: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), seconds)
