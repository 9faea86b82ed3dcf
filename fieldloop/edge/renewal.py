"""Renews the agent's certificate when two thirds of its life are over; what fails is tried again, and reported.

A short process of its own does it (`fieldloop-agent renew`, docs/adr/0027): it asks the signer with the certificate
that is to be replaced, and replaces the file.
"""

import asyncio
import contextlib
import logging
import os
import random
import ssl
import sys
import time
from pathlib import Path
from typing import Final

from fieldloop.domain.enrolment import AgentConfig
from fieldloop.domain.errors import ServiceError
from fieldloop.domain.rollout import Certified
from fieldloop.edge import files, validity
from fieldloop.edge import link as nats
from fieldloop.edge.link import Link
from fieldloop.edge.validity import Validity

LOOK_S: Final = 3600.0  # at the latest after so long the clock is asked again: somebody may have set it
FIRST_PAUSE_S: Final = 1.0  # after a failure; doubled each time
LONGEST_PAUSE_S: Final = 3600.0
RENEW_S: Final = 60.0  # one attempt, at most
REFUSED: Final = "Authorization Violation"  # what NATS says to a user whom it does not know
REVOKED: Final = "; was {target} revoked, or enrolled anew? `fieldloop target add {target}` gives it a new token"

logger = logging.getLogger(__name__)


class Renewal:
    """Keeps the certificate of one agent good."""

    def __init__(self, config: AgentConfig, path: Path) -> None:
        self._path = path  # of agent.json
        self._identity = path.parent / config.identity
        self._draw = random.random()  # noqa: S311 - jitter
        self._held_since = time.monotonic()
        self._failures = 0
        self._renewed = False
        self._error: str | None = None
        self._known = self._read()

    def state(self) -> Certified:
        """Return what is reported of it."""
        until = self._known.until if self._known else 0.0
        return Certified(until_us=round(until * 1e6), error=self._error)

    async def run(self, link: Link, news: asyncio.Event) -> None:
        """Renew over one connection's time; a renewal ends the connection, so that the next shows the certificate."""
        while not link.closed.is_set():
            held_s = time.monotonic() - self._held_since
            wait_s = validity.wait_s(self._known, self._draw, time.time(), held_s, self._renewed)
            pause_s = self._pause_s() if wait_s <= 0 and self._failures else min(wait_s, LOOK_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.closed.wait(), max(pause_s, 0.0))
            if wait_s <= pause_s and not link.closed.is_set() and await self._renew(news):
                link.close("the certificate was renewed")

    def _pause_s(self) -> float:
        """Return how long to wait after a failure: longer each time, never the same as the neighbours."""
        longest = min(FIRST_PAUSE_S * 2 ** min(self._failures - 1, 20), LONGEST_PAUSE_S)
        return random.uniform(longest / 2, longest)  # noqa: S311 - jitter

    async def _renew(self, news: asyncio.Event) -> bool:
        """Try once; return whether there is a new certificate."""
        self._error = await _renewed(self._path)
        news.set()
        if self._error is not None:
            self._failures += 1
            logger.warning("the certificate was not renewed: %s", self._error)
            return False
        self._known, self._held_since = self._read(), time.monotonic()
        self._failures, self._renewed = 0, True
        logger.info("the certificate was renewed")
        return True

    def _read(self) -> Validity | None:
        return validity.read(files.read_or_none(self._identity) or b"")


def client_context(identity: Path, ca: Path) -> ssl.SSLContext:
    """Trust the installation's own authority alone, and show the certificate of a file with key and certificate."""
    context = ssl.create_default_context(cafile=str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(identity)
    return context


async def connect(config: AgentConfig, folder: Path, name: str) -> Link:
    """Connect to the platform with the certificate as it is now: it may have been renewed.

    Raises:
        ServiceError: the broker does not answer or refuses, or the certificate cannot be read.
    """
    identity = folder / config.identity
    try:
        tls = client_context(identity, folder / config.ca)
    except OSError as exc:
        raise ServiceError(f"{identity} cannot be used: {exc}") from exc
    try:
        return await nats.connect(config.broker, name, nats.own_inbox(config.target), tls)
    except ServiceError as exc:
        hint = REVOKED.format(target=config.target) if REFUSED in str(exc) else ""
        raise ServiceError(f"{exc}{hint}") from exc


async def _renewed(path: Path) -> str | None:
    """Run the process that renews; return why it did not, None where it did."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fieldloop.edge.main", "renew", "--config", str(path),
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    try:
        async with asyncio.timeout(RENEW_S):
            _, said = await child.communicate()
    except TimeoutError:
        return f"no outcome within {RENEW_S:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    lines = said.decode(errors="replace").strip().splitlines()
    return None if child.returncode == 0 else (lines[-1][:500] if lines else f"exit status {child.returncode}")
