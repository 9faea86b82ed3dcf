"""From whatever runs to what is desired: fetch, try, install, switch; look after it, and go back where it fails."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fieldloop.domain.enrolment import NOTICE, AgentConfig
from fieldloop.domain.errors import ReleaseError, ServiceError
from fieldloop.domain.release import chunk_key
from fieldloop.domain.rollout import NOTHING, Desired
from fieldloop.edge import download, model
from fieldloop.edge.bucket import direct_get
from fieldloop.edge.download import Job, Outcome
from fieldloop.edge.link import Link, Message
from fieldloop.edge.memory import drop_idle_pages, resident_bytes
from fieldloop.edge.serving import Serving
from fieldloop.edge.slots import Slots

RETRY_S: Final = (1.0, 300.0)  # first and longest pause after a failed attempt
TRIES: Final = 3  # loads of a release that ended the agent before it is refused
CHUNK_S: Final = 60.0  # a chunk over a slow line
TIMESTAMP: Final = chunk_key("metadata/timestamp.json", 0)
LOOK_AGAIN_S: Final = 86_400.0  # at the list of releases, though nobody has touched it: it may have expired
WATCH_S: Final = 1.0
DROP_PAGES_LOOKS: Final = 5  # looks between two times that idle library pages are handed back

logger = logging.getLogger(__name__)


class Attempt:
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
        """The release that it was about."""
        return self.desired.release if self.desired else ""

    def due(self) -> bool:
        """Say whether it is time for the next."""
        return time.monotonic() >= self._due

    def wait_s(self, poll_s: float) -> float:
        """Seconds until desired state is looked at again."""
        return poll_s if not self.failures else min(poll_s, max(self._due - time.monotonic(), 0.0) + 0.01)

    def news(self, before: "Attempt") -> bool:
        """Say whether it ended otherwise than the one before."""
        return self.desired != before.desired or self.error != before.error or self.refused != before.refused


class Reconciler:
    """Holds the slots and what runs to the desired state."""

    def __init__(self, config: AgentConfig, folder: Path, slots: Slots, serving: Serving) -> None:
        self._config = config
        self._root = folder / config.trusted_root
        self._metadata = folder / config.state / "tuf"
        self._slots = slots
        self._serving = serving
        self._bare_bytes = resident_bytes()  # of the agent without any release
        self._well_since = time.monotonic()
        self._looked_at = b""  # the timestamp of the list of releases that this target knows
        self._looked_s = time.monotonic()
        self._revoked: dict[str, str] = {}  # reasons by digest, of releases that are here
        self.attempt = Attempt()
        self.changed = asyncio.Event()  # something to report
        self.asked = asyncio.Event()  # desired state may have changed
        self.assign: Callable[[Mapping[str, str]], None] | None = None  # is told which devices are served

    @property
    def recalled(self) -> str | None:
        """Why the installed release should not run; it does all the same until there is another."""
        current = self._slots.state.current
        return f"release {current[:12]} was revoked: {self._revoked[current]}" if current in self._revoked else None

    async def load_installed(self) -> None:
        """Load what ran before, so that scoring goes on without the platform.

        A release with which the agent has died again and again is left for the one before. A release that is damaged
        on disk is fetched again; until then the one before runs.
        """
        with suppress(OSError):  # a full disk
            self._slots.started()
        state = self._slots.state
        if state.starts > self._config.crashes and state.previous is not None:
            await self._go_back(f"crash loop: {state.starts} starts, none of which lasted {self._config.healthy_s:g} s")
        elif state.current is not None:
            for digest in (state.current, state.previous):
                if digest is not None and await self._load(digest):
                    break
        if self._serving.loaded is not None and (shadow := self._slots.state.shadow) is not None:
            with suppress(ReleaseError):
                self._serving.shade(await self._load_release(shadow), shadow)

    async def run(self, link: Link) -> None:
        """Follow the desired state over one connection, until it ends."""

        def notice(_: Message) -> None:
            self.asked.set()

        link.subscribe(f"{NOTICE}.$KV.desired.{self._config.target}", notice)
        while not link.closed.is_set():
            self.asked.clear()
            try:
                raw = await direct_get(link, "desired", self._config.target)
                if raw is not None:
                    desired = msgspec.json.decode(raw, type=Desired)
                    if desired.devices is not None and self.assign is not None:
                        self.assign(dict(desired.devices))
                    await self._converge(link, desired)
                await self._look_for_revoked(link)
            except ReleaseError as exc:
                logger.warning("the list of releases is refused: %s", exc)
            except (ServiceError, OSError, msgspec.MsgspecError) as exc:
                logger.warning("desired state cannot be followed: %s", exc)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.attempt.wait_s(self._config.poll_s)):
                    await self.asked.wait()

    async def watch(self) -> None:
        """Look once after what runs: go back where it breaks its bounds, remember when it is well."""
        reason = self._serving.breach()
        if reason is None:
            if time.monotonic() - self._well_since >= self._config.healthy_s:
                with suppress(OSError):
                    self._slots.confirm()
            return
        self._well_since = time.monotonic()
        if self._slots.state.previous is not None:
            await self._go_back(reason)
        elif self._serving.trouble != reason:
            logger.warning("%s; there is no release to go back to", reason)
            self._serving.trouble = reason
            self.changed.set()

    async def watch_loop(self) -> None:
        """Look again and again."""
        for look in itertools.count(1):
            await asyncio.sleep(WATCH_S)
            await self.watch()
            if look % DROP_PAGES_LOOKS == 0:
                drop_idle_pages()

    async def _converge(self, link: Link, desired: Desired) -> None:
        """Bring the desired release and shadow to run, or say why not."""
        running = self._serving.loaded
        if desired.release == NOTHING:
            self._clear(desired)
        elif running is not None and running.digest == desired.release and running.manifest.suits(desired.labels):
            self._follow(desired)
        elif self._left(desired):
            reverted = self._slots.state.reverted
            self._conclude(Attempt(desired, 1, reverted.reason if reverted else None, refused=True))
        elif self.attempt.desired != desired or self.attempt.due():
            await self._try(link, desired)
        await self._shade(link, desired)

    async def _try(self, link: Link, desired: Desired) -> None:
        logger.info("release %s is desired", desired.release[:12])
        failures = self.attempt.failures + 1 if self.attempt.desired == desired else 1
        try:
            await self._switch(link, desired)
        except ReleaseError as exc:
            self._conclude(Attempt(desired, failures, str(exc), refused=True))
        except (ServiceError, OSError) as exc:
            self._conclude(Attempt(desired, failures, str(exc)))
        else:
            logger.info("release %s runs, proved", desired.release[:12])
            self._conclude(Attempt(desired))

    async def _switch(self, link: Link, desired: Desired) -> None:
        """Fetch to the side, verify and try there, load here, install, switch."""
        await self._bring(link, desired)
        digest = desired.release
        if self._slots.attempt(digest) >= TRIES:
            raise ReleaseError(f"the agent ended {TRIES} times while it loaded this release")
        loaded = await self._load_release(digest)
        self._slots.switch(digest, desired.issued_us)
        self._serving.run(loaded, self._slots.state)
        self._well_since = time.monotonic()

    async def _bring(self, link: Link, desired: Desired) -> None:
        """Have a release installed; one that was installed before need not come again."""
        digest = desired.release
        if await asyncio.to_thread(self._slots.holds, digest, desired.labels):
            await self._look_for_revoked(link)
            if digest in self._revoked:
                raise ReleaseError(f"it was revoked: {self._revoked[digest]}")
            return
        staging = self._slots.staging(digest)
        outcome = await self._ask(link, desired, str(staging))
        manifest = await asyncio.to_thread(model.manifest_of, staging)
        allowed = manifest.budget.memory_bytes
        needed = self._bare_bytes + outcome.memory_bytes
        if allowed is not None and needed > allowed:
            raise ReleaseError(f"memory over budget: expected at most {allowed:,} bytes, would take {needed:,}")
        await asyncio.to_thread(self._slots.install, digest)

    async def _ask(self, link: Link, desired: Desired | None = None, staging: str = "") -> Outcome:
        """Have the updater fetch a release, or look at the list alone; learn which releases here are revoked."""

        async def read(key: str) -> bytes | None:
            return await direct_get(link, "releases", key, CHUNK_S)

        newest = await read(TIMESTAMP)
        held = await asyncio.to_thread(self._slots.held)
        job = Job(str(self._root), str(self._metadata), held, desired, staging, str(self._slots.installed))
        outcome = await download.fetch(job, read, self._config.download_bytes_per_s)
        self._looked_at, self._looked_s, self._revoked = newest or b"", time.monotonic(), outcome.revoked
        if self.recalled is not None:
            logger.warning("%s", self.recalled)
            self.changed.set()
        return outcome

    async def _look_for_revoked(self, link: Link) -> None:
        """Leave what is revoked, where the list of releases has changed; never without a model that works."""
        newest = await direct_get(link, "releases", TIMESTAMP)
        fresh = newest == self._looked_at and time.monotonic() - self._looked_s < LOOK_AGAIN_S
        if newest is not None and not fresh and self._slots.state.current is not None:
            await self._ask(link)
        self._slots.drop(self._revoked)
        if self._serving.shadow_digest in self._revoked:
            self._serving.unshade()
        if self.recalled is not None and self._slots.state.previous is not None:
            await self._go_back(self.recalled)

    async def _shade(self, link: Link, desired: Desired) -> None:
        """Have the desired shadow run beside; one that does not will not be tried again by the same order."""
        digest, running = desired.shadow, self._serving.loaded
        if digest is None or running is None:
            self._serving.unshade()
            self._slots.shade(None)
            return
        if digest == self._serving.shadow_digest or running.digest != desired.release:
            return  # first what it is to be compared with: fetching both in turn would lose what has come of either
        wanted = msgspec.structs.replace(desired, release=digest, manifest=desired.shadow_manifest or "")
        try:
            await self._bring(link, wanted)
            loaded = await self._load_release(digest)
            self._slots.shade(digest)
        except ReleaseError as exc:
            logger.warning("shadow %s does not run: %s", digest[:12], exc)
            self._serving.shade(None, digest, str(exc))
        except OSError as exc:
            raise ServiceError(f"shadow {digest[:12]}: {exc}") from exc
        else:
            logger.info("shadow %s runs beside", digest[:12])
            self._serving.shade(loaded, digest)
        self.changed.set()

    def _left(self, desired: Desired) -> bool:
        """Say whether this very order was followed once, and its release left again."""
        reverted = self._slots.state.reverted
        return reverted is not None and (reverted.release, reverted.issued_us) == (desired.release, desired.issued_us)

    def _clear(self, desired: Desired) -> None:
        if self._serving.loaded is not None or self._slots.state.current is not None:
            logger.info("no release is desired")
            self._slots.clear()
            self._serving.stop()
        self._conclude(Attempt(desired))

    def _follow(self, desired: Desired) -> None:
        with suppress(OSError):
            self._slots.follow(desired.issued_us)
        self._conclude(Attempt(desired))

    async def _go_back(self, reason: str) -> None:
        """Run the release before again; without one that loads, leave things as they are."""
        state = self._slots.state
        try:
            if state.previous is None:
                raise ReleaseError("there is no release before it")
            loaded = await self._load_release(state.previous)
            self._slots.revert(reason)
        except (ReleaseError, OSError) as exc:
            self._serving.trouble = f"{reason}; cannot go back: {exc}"
            logger.error("%s", self._serving.trouble)
            if self._serving.loaded is None and state.current is not None:
                await self._load(state.current)
            return
        logger.error("release %s is left for %s: %s", (state.current or "")[:12], loaded.digest[:12], reason)
        self._serving.run(loaded, self._slots.state)
        if self.attempt.desired is not None:
            self._conclude(Attempt(self.attempt.desired, 1, reason, refused=True))
        self.changed.set()

    async def _load(self, digest: str) -> bool:
        try:
            self._serving.run(await self._load_release(digest), self._slots.state)
        except ReleaseError as exc:
            self.attempt = Attempt(error=str(exc))
            logger.error("release %s on disk is refused: %s", digest[:12], exc)
            return False
        logger.info("running release %s from disk", digest[:12])
        return True

    async def _load_release(self, digest: str) -> model.Loaded:
        return await asyncio.to_thread(lambda: model.load(self._slots.load(digest)))

    def _conclude(self, attempt: Attempt) -> None:
        """Remember how an attempt ended, and report it where that is news."""
        if attempt.error and attempt.error != self.attempt.error:
            logger.warning("release %s does not run: %s", attempt.digest[:12], attempt.error)
        if attempt.news(self.attempt):
            self.changed.set()
        self.attempt = attempt
