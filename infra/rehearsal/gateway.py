"""One simulated gateway: follows its desired state over the real protocol, and reports as an agent does.

Real: desired state; the signed metadata, which every gateway fetches and verifies for itself (`trust`); the download of
every byte of its release from the mirror, and its check against what is signed; reports and heartbeats. Simulated:
disks and processes are not there, releases come whole and never as patches, and a graph runs once for all gateways of a
process.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import msgspec
import nats.errors
import numpy as np
from tuf.api.exceptions import LengthOrHashMismatchError

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import GRAPH, MANIFEST, Release, decode_manifest
from fieldloop.domain.rollout import NOTHING, Desired, Inventory, Reported, Running, Served, Shadow
from fieldloop.domain.sketch import Tally
from infra.rehearsal.faults import Fate
from infra.rehearsal.link import Link
from infra.rehearsal.models import POOL_WINDOWS, Library, Runtime
from infra.rehearsal.trust import Fetch, Trust

CUT: Final = 0.7  # that it does so at a file's end
CUTS: Final = (1, 3)  # how often a flapping gateway loses power during one download
DARK_S: Final = (0.5, 3.0)  # how long it is gone then
LATENCY_S: Final = 0.002  # from reading to prediction, about
MEMORY_BYTES: Final = 60 << 20  # resident, of an agent
MOST_WINDOWS: Final = 512  # drawn from the pool for one heartbeat


class PowerCutError(Exception):
    """The gateway went dark; what it had in memory is gone."""


@dataclass
class Work:
    """What a release has done since the gateway switched to it."""

    runtime: Runtime
    since_us: int
    windows: int = 0
    scores: Tally = field(default_factory=Tally)
    latency: Tally = field(default_factory=Tally)

    def served(self) -> Served:
        """Return it as it is reported."""
        return Served(
            self.runtime.release,
            self.since_us,
            self.windows,
            latency=self.latency.sketch(),
            scores=self.scores.sketch(),
            start_bytes=MEMORY_BYTES,
            memory_bytes=MEMORY_BYTES,
        )


@dataclass
class Shade:
    """The shadow beside the running release."""

    runtime: Runtime
    windows: int = 0
    gaps: Tally = field(default_factory=Tally)
    scores: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Life:
    """What all gateways of a process have in common.

    Attributes:
        heartbeat_s: seconds between reports.
        windows_per_s: windows that each scores.
        skew_s: how far clocks are off, at most.
    """

    heartbeat_s: float
    windows_per_s: float
    skew_s: float


class Gateway:
    """One target of a rehearsal."""

    def __init__(
        self,
        name: str,
        fate: Fate,
        link: Link,
        trust: Trust,
        library: Library,
        draw: random.Random,
        life: Life,
        installed: Runtime | None,
    ) -> None:
        self.name = name
        self.fate = fate
        self._link = link
        self._trust = trust
        self._library = library
        self._draw = draw
        self._life = life
        self._skew_us = round(draw.uniform(-life.skew_s, life.skew_s) * 1e6)
        self._work = Work(installed, time.time_ns() // 1000) if installed else None
        self._before: Served | None = None
        self._shade: Shade | None = None
        self._desired: Desired | None = None
        self._error: str | None = None
        self._refused = False
        self._installed = {installed.release: installed} if installed else {}
        self._scored_at = time.monotonic()
        self._following: asyncio.Task[None] | None = None

    @property
    def running(self) -> str | None:
        """Digest of the release that really runs."""
        return self._work.runtime.release if self._work else None

    @property
    def graph(self) -> str | None:
        """SHA-256 of the graph that really runs."""
        return self._work.runtime.manifest.graph.sha256 if self._work else None

    @property
    def received_bytes(self) -> int:
        """Payload that it has received."""
        return self._link.received_bytes

    def ask(self, desired: Desired, at_once: asyncio.Semaphore) -> None:
        """Take an order; the newest wins over one that is being followed."""
        if self.fate is Fate.SILENT:
            return
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.create_task(self._follow(desired, at_once))

    async def beat(self) -> None:
        """Report for ever, at first somewhere within the first interval."""
        if self.fate is Fate.SILENT:
            return
        every_s = self._life.heartbeat_s
        await asyncio.sleep(self._draw.uniform(0, every_s))
        while True:
            self._score()
            await self.report()
            await asyncio.sleep(every_s * self._draw.uniform(0.9, 1.1))

    async def report(self) -> None:
        """Say what runs; a busy broker is asked again at the next heartbeat."""
        with suppress(nats.errors.Error, TimeoutError):
            await self._link.report(self._report())

    async def _follow(self, desired: Desired, at_once: asyncio.Semaphore) -> None:
        """Bring the desired release to run, through as many power cuts as it takes, or refuse it."""
        self._desired, self._error, self._refused = desired, None, False
        cuts = self._draw.randint(*CUTS) if self.fate is Fate.FLAPPING else 0
        while True:
            try:
                async with at_once:
                    await self._converge(desired, cuts)
                break
            except PowerCutError:
                cuts -= 1
                await asyncio.sleep(self._draw.uniform(*DARK_S))
            except ReleaseError as exc:
                self._error, self._refused = str(exc), True
                break
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(1.0)
        await self.report()

    async def _converge(self, desired: Desired, cuts: int) -> None:
        if desired.release == NOTHING:
            self._work, self._shade = None, None
            return
        if desired.release != self.running:
            runtime = await self._bring(desired, cuts)
            proof = runtime.proof(faulty=self.fate is Fate.FAULTY)
            if not proof.passed:
                raise ReleaseError(f"canary: outputs differ by {proof.max_abs_diff}: runtime gives other numbers")
            self._before = self._work.served() if self._work else None
            self._work = Work(runtime, time.time_ns() // 1000)
        self._shade = None
        if desired.shadow and desired.shadow_manifest:
            shadow = msgspec.structs.replace(desired, release=desired.shadow, manifest=desired.shadow_manifest)
            self._shade = Shade(await self._bring(shadow, 0))

    async def _bring(self, desired: Desired, cuts: int) -> Runtime:
        """Return a release that is on the disk already, else download and verify it."""
        digest = desired.release
        if digest in self._installed:
            return self._installed[digest]
        release = await self._download(desired, cuts)
        self._link.traffic.verified += 1
        runtime = self._library.get(digest, desired.labels) or self._library.load(release)
        self._installed = {digest: runtime, **dict(list(self._installed.items())[:1])}
        return runtime

    async def _download(self, desired: Desired, cuts: int) -> Release:
        def passed(name: str, data: bytes) -> bytes:
            if cuts > 0 and self._draw.random() < CUT:
                raise PowerCutError
            damaged = self.fate is Fate.CORRUPTING and name.endswith(GRAPH)
            return data[:-1] + bytes([data[-1] ^ 1]) if damaged else data

        return await download(self._link.fetch, self._trust, desired, passed)

    def _score(self) -> None:
        """Count the windows that have come since the last heartbeat, with the shadow where there is one."""
        now = time.monotonic()
        count = min(round((now - self._scored_at) * self._life.windows_per_s), MOST_WINDOWS)
        if self._work is None or count == 0:
            return
        self._scored_at = now
        drifted = self.fate is Fate.DRIFTED
        chosen = np.array([self._draw.randrange(POOL_WINDOWS) for _ in range(count)])
        values = self._library.predictions(self._work.runtime, self._work.runtime, drifted=drifted)[chosen]
        self._work.windows += count
        self._work.scores.add(values)
        self._work.latency.add_one(LATENCY_S * self._draw.uniform(0.5, 1.5))
        if self._shade is not None:
            beside = self._library.predictions(self._shade.runtime, self._work.runtime, drifted=drifted)[chosen]
            self._shade.windows += count
            self._shade.scores.add(beside)
            self._shade.gaps.add(beside - values)

    def _report(self) -> Reported:
        work, shade, desired = self._work, self._shade, self._desired
        faulty = self.fate is Fate.FAULTY
        return Reported(
            target=self.name,
            at_us=time.time_ns() // 1000 + self._skew_us,
            runtime="simulated",
            running=_running(work.runtime, faulty=faulty) if work else None,
            attempted=desired.release if desired else None,
            answers_us=desired.issued_us if desired else 0,
            refused=self._refused,
            error=self._error,
            scored=work.windows if work else 0,
            inventory=Inventory(machine="simulated", cores=1),
            served=work.served() if work else None,
            before=self._before,
            shadow=_shadow(shade, work.runtime) if shade and work else None,
        )


async def download(
    fetch: Fetch, trust: Trust, desired: Desired, passed: Callable[[str, bytes], bytes] = lambda _, data: data
) -> Release:
    """Fetch a release's three files, each held against what is signed, and all against the digest that is desired.

    Args:
        fetch: reads a file of the mirror.
        trust: what the gateway believes.
        desired: which release, and whose.
        passed: sees each file, by name, on its way to the disk, and may damage it.

    Raises:
        ReleaseError: it is not signed, or a file is missing or damaged.
    """
    folder = desired.manifest.removesuffix(MANIFEST)
    signed = await trust.signed(fetch, desired.manifest)

    async def file(name: str) -> bytes:
        info = signed.get(folder + name)
        if info is None:
            raise ReleaseError(f"{folder}{name}: not among the signed targets")
        data = await fetch(f"targets/{folder}{info.hashes['sha256']}.{name}")
        if data is None:
            raise ReleaseError(f"{folder}{name} is not in the release mirror")
        data = passed(name, data)
        try:
            info.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as exc:
            raise ReleaseError(f"{name}: damaged on this disk: {exc}") from exc
        return data

    manifest = await file(MANIFEST)
    graph, canary = decode_manifest(manifest).suited(desired.labels).names
    release = Release(manifest, await file(graph), await file(canary))
    release.open(desired.release)
    return release


def _running(runtime: Runtime, *, faulty: bool) -> Running:
    manifest = runtime.manifest
    return Running(runtime.release, manifest.model, manifest.version, runtime.proof(faulty=faulty))


def _shadow(shade: Shade, beside: Runtime) -> Shadow:
    return Shadow(
        shade.runtime.release,
        beside.release,
        shade.runtime.proof(faulty=False),
        windows=shade.windows,
        gaps=shade.gaps.sketch(),
        scores=shade.scores.sketch(),
    )
