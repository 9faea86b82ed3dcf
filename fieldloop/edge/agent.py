"""The agent of one edge target: converges to the desired release, scores readings, reports what it runs.

Three loops over one outbound connection: reconcile (desired against running), score, report. The running release is in
memory; whatever goes wrong with another one leaves it alone.
"""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from pathlib import Path
from typing import Final

import msgspec
import nats
import nats.errors
import nats.js.errors
import onnxruntime
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from fieldloop.domain.enrolment import AgentConfig
from fieldloop.domain.errors import ReleaseError, ServiceError
from fieldloop.domain.predictions import message_id
from fieldloop.domain.rollout import Desired, Reported
from fieldloop.edge import model, updater
from fieldloop.edge.feed import Batch, Feed, OutOfOrder
from fieldloop.edge.files import read_or_none, write_atomic
from fieldloop.edge.scorer import Scorer
from fieldloop.edge.slots import Slots

REQUEST_S: Final = 5.0  # an answer of the broker
RETRY_S: Final = (1.0, 300.0)  # first and longest pause after a failed attempt
RECONNECT_S: Final = (0.5, 2.5)  # pause between connection attempts, drawn once a process
TAKE_S: Final = 0.5  # longest wait for messages before looking whether to stop

_BROKER_ERRORS: Final = (nats.errors.Error, TimeoutError, OSError)

logger = logging.getLogger(__name__)


class Agent:
    """One edge target's agent; `run` until stopped."""

    def __init__(self, config: AgentConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._state = folder / config.state
        self._slots = Slots(self._state)
        self._scorer = Scorer(config.target, config.devices)
        self._streams = self._state / "streams.msgpack"
        self._loaded: model.Loaded | None = None
        self._attempt = _Attempt()
        self._scored = 0
        self._errors = 0
        self._trouble: str | None = None  # why the running release does not score
        self._changed = asyncio.Event()  # something to report
        self._asked = asyncio.Event()  # desired state may have changed
        self._ended = asyncio.Event()  # stop, or the connection is closed for good

    async def run(self, stop: asyncio.Event) -> None:
        """Load what is installed, then serve until `stop`, over as many connections as it takes."""
        await self._load_installed()
        self._restore_streams()
        while not stop.is_set():
            self._ended.clear()
            watch = asyncio.create_task(self._end_with(stop))
            try:
                await self._serve()
            except* _BROKER_ERRORS as group:
                logger.warning("connection lost: %s", group.exceptions[0])
            finally:
                watch.cancel()
            if not stop.is_set():
                await _pause(stop, random.uniform(*RECONNECT_S))  # noqa: S311 - jitter
        logger.info("stopped")

    async def _load_installed(self) -> None:
        """Verify and load the release that was running before, so that scoring goes on without the platform."""
        digest = self._slots.current()
        if digest is None:
            return
        try:
            self._loaded = await asyncio.to_thread(lambda: model.load(self._slots.load(digest)))
            logger.info("running release %s from disk", digest[:12])
        except ReleaseError as exc:
            self._attempt = _Attempt(error=str(exc))
            logger.error("release %s on disk is refused: %s", digest[:12], exc)

    def _restore_streams(self) -> None:
        state = read_or_none(self._streams)
        if state is None:
            return
        try:
            self._scorer.restore(state)
        except (msgspec.MsgspecError, ValueError) as exc:
            logger.error("stream state is not usable, windows begin anew: %s", exc)

    async def _end_with(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._ended.set()

    async def _serve(self) -> None:
        """Connect, and run the loops until the connection ends."""
        connecting = asyncio.create_task(self._connect())
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait({connecting, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not connecting.done():
            connecting.cancel()
            return
        client = connecting.result()
        logger.info("connected to %s", self._config.broker)
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._reconcile_loop(client))
                loops.create_task(self._score_loop(client))
                loops.create_task(self._report_loop(client))
        finally:
            with contextlib.suppress(*_BROKER_ERRORS):
                await client.close()

    async def _connect(self) -> Client:
        async def reconnected() -> None:
            logger.info("connected again")
            self._asked.set()
            self._changed.set()

        async def closed() -> None:
            self._ended.set()

        config = self._config
        return await nats.connect(
            config.broker,
            name=config.target,
            tls=_tls(self._folder, config),
            inbox_prefix=f"_INBOX.{config.target}",
            max_reconnect_attempts=-1,
            reconnect_time_wait=random.uniform(*RECONNECT_S),  # noqa: S311 - jitter
            error_cb=_log_error,
            reconnected_cb=reconnected,
            closed_cb=closed,
        )

    # Reconcile: from whatever runs to what is desired.

    async def _reconcile_loop(self, client: Client) -> None:
        async def notice(_: Msg) -> None:
            self._asked.set()

        await client.subscribe(f"$KV.desired.{self._config.target}", cb=notice)
        while not self._ended.is_set():
            self._asked.clear()
            try:
                raw = await direct_get(client, "desired", self._config.target)
                if raw is not None:
                    await self._converge(client, msgspec.json.decode(raw, type=Desired))
            except (*_BROKER_ERRORS, ServiceError, msgspec.MsgspecError) as exc:
                logger.warning("desired state cannot be read: %s", exc or type(exc).__name__)
            await _first(self._asked, self._ended, timeout_s=self._attempt.wait_s(self._config.poll_s))

    async def _converge(self, client: Client, desired: Desired) -> None:
        """Bring the desired release to run, or say why not."""
        if self._loaded is not None and self._loaded.digest == desired.release:
            self._conclude(_Attempt(desired))
            return
        if self._attempt.desired == desired and not self._attempt.due():
            return
        logger.info("release %s is desired", desired.release[:12])
        failures = self._attempt.failures + 1 if self._attempt.desired == desired else 1
        try:
            self._loaded = await asyncio.to_thread(self._bring, _reader(client), desired)
        except ReleaseError as exc:
            self._conclude(_Attempt(desired, failures, str(exc), refused=True))
        except (ServiceError, OSError) as exc:
            self._conclude(_Attempt(desired, failures, str(exc)))
        else:
            logger.info("release %s runs, proved", desired.release[:12])
            self._conclude(_Attempt(desired))

    def _bring(self, read: updater.Read, desired: Desired) -> model.Loaded:
        """Download to the side, verify, run the canary, install, switch; in a thread."""
        root = (self._folder / self._config.trusted_root).read_bytes()
        staging = self._slots.staging(desired.release)
        loaded = model.load(updater.fetch(read, root, self._state / "tuf", staging, desired))
        self._slots.install(desired.release)
        self._slots.switch(desired.release)
        return loaded

    def _conclude(self, attempt: "_Attempt") -> None:
        """Remember how an attempt ended, and report it where that is news."""
        if attempt.error and attempt.error != self._attempt.error:
            logger.warning("release %s does not run: %s", attempt.digest[:12], attempt.error)
        if attempt.news(self._attempt):
            self._changed.set()
        self._attempt = attempt

    # Score: readings to predictions.

    async def _score_loop(self, client: Client) -> None:
        feed = Feed(client, self._config.target, self._config.redelivery_s)
        stream = client.jetstream(timeout=REQUEST_S)
        saved = self._scorer.state()
        while not self._ended.is_set():
            if self._loaded is None:
                await _pause(self._ended, TAKE_S)
                continue
            try:
                batch = await feed.take(self._scorer.position, TAKE_S)
                saved = await self._deal_with(batch, feed, stream, self._loaded, saved)
            except (OutOfOrder, ReleaseError, *_BROKER_ERRORS) as exc:
                logger.warning("readings are taken again in %.0f s: %s", feed.rest_s, exc or type(exc).__name__)
                self._scorer.restore(saved)
                self._trouble = str(exc) if isinstance(exc, ReleaseError) else None
                await self._rest(feed)
        if self._loaded is not None:
            with contextlib.suppress(OutOfOrder, ReleaseError, *_BROKER_ERRORS):
                batch = await feed.close(self._scorer.position)
                await self._deal_with(batch, feed, stream, self._loaded, saved)
                await client.flush()

    async def _deal_with(
        self, batch: Batch | None, feed: Feed, stream: JetStreamContext, loaded: model.Loaded, saved: bytes
    ) -> bytes:
        """Score, publish, remember, acknowledge, in this order, so that a kill anywhere loses nothing."""
        if batch is None:
            return saved
        scored = self._scorer.score(loaded, batch.fresh, batch.position)
        for message in scored.messages:
            await stream.publish(
                f"predictions.{self._config.target}", message, headers={"Nats-Msg-Id": message_id(message)}
            )
        state = self._scorer.state()
        await asyncio.to_thread(write_atomic, self._streams, state)
        await feed.acknowledge(batch)
        self._trouble = None
        self._scored += scored.windows
        self._errors += scored.errors
        return state

    async def _rest(self, feed: Feed) -> None:
        """Leave the consumer alone until the broker delivers again what was not acknowledged."""
        with contextlib.suppress(*_BROKER_ERRORS):
            await feed.drop()
        await _pause(self._ended, feed.rest_s)

    # Report: what runs, with its proof.

    async def _report_loop(self, client: Client) -> None:
        stream = client.jetstream(timeout=REQUEST_S)
        while not self._ended.is_set():
            self._changed.clear()
            try:
                await stream.publish(f"$KV.reported.{self._config.target}", msgspec.json.encode(self._report()))
                wait_s = self._config.heartbeat_s
            except _BROKER_ERRORS as exc:
                logger.warning("report was not taken: %s", exc or type(exc).__name__)
                wait_s = RETRY_S[0]
            await _first(self._changed, self._ended, timeout_s=wait_s)

    def _report(self) -> Reported:
        return Reported(
            target=self._config.target,
            at_us=time.time_ns() // 1000,
            runtime=onnxruntime.__version__,
            running=self._loaded.running if self._loaded else None,
            attempted=self._attempt.digest or None,
            refused=self._attempt.refused,
            error=self._attempt.error or self._trouble,
            scored=self._scored,
            errors=self._errors,
        )


class _Attempt:
    """How the last attempt at a desired state ended, and when the next is due."""

    def __init__(
        self, desired: Desired | None = None, failures: int = 0, error: str | None = None, *, refused: bool = False
    ) -> None:
        self.desired = desired
        self.failures = failures
        self.error = error
        self.refused = refused
        pause: float = min(RETRY_S[0] * 2.0 ** max(failures - 1, 0), RETRY_S[1])
        self._due: float = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    @property
    def digest(self) -> str:
        return self.desired.release if self.desired else ""

    def due(self) -> bool:
        return time.monotonic() >= self._due

    def wait_s(self, poll_s: float) -> float:
        """Seconds until desired state is looked at again."""
        return poll_s if not self.failures else min(poll_s, max(self._due - time.monotonic(), 0.0) + 0.01)

    def news(self, before: "_Attempt") -> bool:
        """Say whether it ended otherwise than the one before."""
        return self.desired != before.desired or self.error != before.error or self.refused != before.refused


async def direct_get(client: Client, bucket: str, key: str) -> bytes | None:
    """Return the value of a key, None where there is none; needs no more than the right to ask for this subject.

    Raises:
        ServiceError: the broker answers with another status.
    """
    subject = f"$KV.{bucket}.{key}"
    answer = await client.request(f"$JS.API.DIRECT.GET.KV_{bucket}.{subject}", b"", timeout=REQUEST_S)
    headers = answer.headers or {}
    status = headers.get("Status")
    if status == "404" or headers.get("KV-Operation") in ("DEL", "PURGE"):
        return None
    if status is not None:
        raise ServiceError(f"{subject}: the broker answers {status} {headers.get('Description', '')}")
    return answer.data


def _reader(client: Client) -> updater.Read:
    """Return a function that reads the release mirror from another thread than the connection's."""
    loop = asyncio.get_running_loop()

    def read(key: str) -> bytes | None:
        asked = asyncio.run_coroutine_threadsafe(direct_get(client, "releases", key), loop)
        try:
            return asked.result(2 * REQUEST_S)
        except _BROKER_ERRORS as exc:
            asked.cancel()
            raise ServiceError(f"release mirror, {key}: {exc or type(exc).__name__}") from exc

    return read


def _tls(folder: Path, config: AgentConfig) -> ssl.SSLContext:
    """Trust the install's own authority alone, and show the target's certificate."""
    context = ssl.create_default_context(cafile=str(folder / config.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / config.cert, folder / config.key)
    return context


async def _log_error(exc: Exception) -> None:
    logger.warning("broker: %s", exc or type(exc).__name__)


async def _pause(ended: asyncio.Event, seconds: float) -> None:
    await _first(ended, timeout_s=seconds)


async def _first(*events: asyncio.Event, timeout_s: float) -> None:
    """Wait until one of the events is set, at most so long."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
