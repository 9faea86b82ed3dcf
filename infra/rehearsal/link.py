"""A simulated gateway's line to the broker: slow, lossy, at times not there; and what went over it."""

import asyncio
import random
import time
from dataclasses import dataclass

import msgspec
from nats.aio.client import Client
from nats.errors import Error
from nats.js import JetStreamContext

from fieldloop.domain.release import CHUNK_BYTES, chunk_key
from fieldloop.domain.rollout import Reported
from infra.rehearsal.faults import Faults

REQUEST_S = 30.0  # an answer of a busy broker
RETRY_S = 2.0  # after which a gateway repeats what was lost


@dataclass
class Traffic:
    """What all gateways of a process have received and sent: payload bytes, without what TLS and NATS put around it.

    `verified` counts the releases that came and were found to be what is signed.
    """

    requests: int = 0
    verified: int = 0
    lost: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class Link:
    """One gateway's line; many share a connection."""

    def __init__(
        self, client: Client, js: JetStreamContext, faults: Faults, draw: random.Random, traffic: Traffic
    ) -> None:
        self._client = client
        self._js = js
        self._faults = faults
        self._draw = draw
        self.traffic = traffic
        self.received_bytes = 0
        self._offline_until = 0.0
        self._next_outage = time.monotonic() + self._until_outage()

    async def fetch(self, name: str) -> bytes | None:
        """Read a mirrored file chunk by chunk; None where it is not there."""
        parts: list[bytes] = []
        while True:
            part = await self._get("releases", chunk_key(name, len(parts)))
            if part is None:
                return None
            parts.append(part)
            if len(part) < CHUNK_BYTES:
                return b"".join(parts)

    async def report(self, report: Reported) -> None:
        """Send a report, until the broker has it."""
        payload = msgspec.json.encode(report)
        await self._reach()
        await self._js.publish(f"$KV.reported.{report.target}", payload, timeout=REQUEST_S)
        self.traffic.requests += 1
        self.traffic.sent_bytes += len(payload)

    async def _get(self, bucket: str, key: str) -> bytes | None:
        await self._reach()
        subject = f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{key}"
        answer = await self._client.request(subject, b"", timeout=REQUEST_S)
        self.traffic.requests += 1
        self.traffic.received_bytes += len(answer.data)
        self.received_bytes += len(answer.data)
        status = (answer.headers or {}).get("Status")
        if status not in (None, "404"):
            raise Error(f"{key}: the broker answers {status}")
        return None if status else answer.data

    async def _reach(self) -> None:
        """Wait as long as the line takes: outages, the way there and back, and repetitions of what is lost."""
        faults = self._faults
        if faults.offline:
            await self._wait_out()
        while faults.loss and self._draw.random() < faults.loss:
            self.traffic.lost += 1
            await asyncio.sleep(RETRY_S)
        if faults.latency_s:
            await asyncio.sleep(self._draw.expovariate(1 / faults.latency_s))

    async def _wait_out(self) -> None:
        now = time.monotonic()
        if now >= self._next_outage:
            self._offline_until = now + self._draw.expovariate(1 / self._faults.offline_s)
            self._next_outage = self._offline_until + self._until_outage()
        await asyncio.sleep(max(0.0, self._offline_until - now))

    def _until_outage(self) -> float:
        """Draw the seconds until the next outage, so that the line is down for its share of the time."""
        share = self._faults.offline
        return self._draw.expovariate(share / (self._faults.offline_s * (1 - share))) if share else float("inf")
