"""Nothing lost, nothing twice: acquisition, broker and object store killed with -9 while devices publish.

Devices repeat what was not acknowledged, send some readings again, some late, some malformed, in no order. In the end
the lake's readings must be those that were made up, and its quarantine the malformed messages that the broker kept.
Readings of a device that the contract watch holds in doubt wait in quarantine: they count as there, and as `held`.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
import numpy as np
import polars as pl
import psutil

from benchmarks.figure import Figure
from benchmarks.plant import BEGIN_MS, DEVICES, data_plane
from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores import broker
from fieldloop.stores.drain import backlog, drain
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local.platform import PLATFORM
from infra.local.stack import stack_status
from tasks.partitions import positions

RESENT, MALFORMED, LATE = 0.05, 0.01, 0.01  # shares of the messages
HOUR_S: Final = 3600
LATE_S: Final = 30 * 86_400
PUBLISH_S: Final = 2.0  # for the broker's acknowledgement, before a message is sent again
CONNECTION_S: Final = 20.0  # of one connection; nats-py may wait for ever for a broker that was killed under TLS
SETTLE_S: Final = 300.0  # for the rest of the stream, once the killing is over
QUIET_S: Final = 1
NONSENSE: Final = (b"\x00nonsense %d", b'{"t": %d, "c"', b'{"t": %d, "c": "warm"}', b'{"t": %d, "c": 99999}')
ACQUIRE: Final = """
import os, sys, time
from fieldloop.domain.errors import FieldloopError
from fieldloop.stores import drain
from benchmarks.plant import BenchSettings as Settings
from tasks import acquire
drain.BATCH_MESSAGES, acquire.ALONE_MESSAGES = int(sys.argv[1]), int(sys.argv[2])
parent = os.getppid()
while os.getppid() == parent:
    try:
        acquire.acquire(Settings(), float(sys.argv[3]))
    except FieldloopError as error:
        print(error, file=sys.stderr)
        time.sleep(0.2)
"""


@dataclass(frozen=True)
class Plan:
    """How much is sent, and how often something is killed.

    Attributes:
        readings: different good readings, all devices together.
        a_message: readings of a message.
        kills: how many.
        pause_s: between two of them, from nothing to so long.
        batch: messages of a commit, at most.
        alone: backlog, in messages, that is drained without further processes.
        seed: of all that is random.
    """

    readings: int
    a_message: int
    kills: int
    pause_s: float
    batch: int
    alone: int
    seed: int = 7


@dataclass(frozen=True)
class Outcome:
    """What was sent, killed, and found in the end.

    Attributes:
        sent: messages, re-sends included, as often as the broker keeps them.
        resent: readings that came again.
        malformed: malformed messages that the broker keeps.
        late: messages that were up to 30 days late.
        killed: how often, a victim.
        readings: rows of table `readings`.
        held: readings that wait in quarantine, their device being in doubt.
        quarantined: other rows of table `quarantine`.
        lost: readings and malformed messages that are in neither table.
        twice: those that are there more than once.
        wrong: readings with another value than was sent, or that nobody sent.
    """

    sent: int
    resent: int
    malformed: int
    late: int
    killed: dict[str, int]
    readings: int
    held: int
    quarantined: int
    lost: int
    twice: int
    wrong: int


@dataclass(frozen=True)
class Traffic:
    """What devices send: messages in order of their sending, and the truth about the readings in them."""

    messages: list[tuple[str, bytes]]
    truth: pl.DataFrame
    malformed: frozenset[bytes]
    resent: int
    late: int


FULL: Final = Plan(readings=2_000_000, a_message=20, kills=20, pause_s=4.0, batch=4_000, alone=2_000)


def measure() -> Figure:
    """Run the full plan."""
    with data_plane(restart=True) as settings:
        outcome = run(settings, FULL)
    return Figure(
        figure=outcome.lost + outcome.twice + outcome.wrong,
        unit="readings or messages lost, twice or wrong",
        peer="the truth that was sent",
        ratio=round((outcome.readings + outcome.held) / FULL.readings, 6),
        further={name: getattr(outcome, name) for name in Outcome.__dataclass_fields__},
    )


def run(settings: Settings, plan: Plan) -> Outcome:
    """Publish, drain and kill at the same time; then let the rest drain, and compare.

    Args:
        settings: a running store and broker with devices `dev-0000` and so on of profile `bench`, their stream empty.
        plan: how much of everything.
    """
    traffic = made_up(plan)
    acquisition = _Acquisition(settings, plan)
    try:
        killed = asyncio.run(_publish_and_kill(settings, plan, traffic, acquisition))
        _await_end(settings, acquisition)
    finally:
        acquisition.stop()
    return _compare(settings, traffic, killed)


def made_up(plan: Plan) -> Traffic:
    """Return the traffic of a plan: shuffled within an hour, some late, some again, some malformed."""
    random = np.random.default_rng(plan.seed)
    count = plan.readings // plan.a_message
    device = np.arange(count) % DEVICES
    begin = np.arange(count) // DEVICES * plan.a_message  # seconds
    late = random.random(count) < LATE
    event_ms = BEGIN_MS + 1000 * (begin[:, None] + np.arange(plan.a_message))
    event_ms = np.where(late[:, None], event_ms - 500 - 1000 * LATE_S // 2, event_ms)  # half-seconds: none is twice
    value = random.integers(0, 400, event_ms.shape) / 10
    texts = [
        b"[%b]" % b", ".join(b'{"t": %d, "c": %.1f}' % pair for pair in zip(times, values, strict=True))
        for times, values in zip(event_ms.tolist(), value.tolist(), strict=True)
    ]
    again = np.flatnonzero(random.random(count) < RESENT)
    sent = [(place, device[place], texts[place]) for place in range(count)]
    sent += [(place, device[place], texts[place]) for place in again.tolist()]
    bad = np.flatnonzero(random.random(count) < MALFORMED).tolist()
    sent += [(place, device[place], NONSENSE[place % len(NONSENSE)] % (BEGIN_MS + place)) for place in bad]
    due = [begin[place] for place, _, _ in sent] + random.uniform(0, HOUR_S, len(sent))
    messages = [(f"devices.dev-{sent[turn][1]:04}.readings", sent[turn][2]) for turn in np.argsort(due).tolist()]
    names = np.array([f"dev-{number:04}" for number in range(DEVICES)])[np.repeat(device, plan.a_message)]
    truth = pl.DataFrame({"device": names, "ms": event_ms.ravel(), "truth": value.ravel()})
    malformed = frozenset(text for _, _, text in sent if not text.startswith(b"["))
    return Traffic(messages, truth, malformed, len(again) * plan.a_message, int(late.sum()))


class _Acquisition:
    """The process that acquires for ever, started anew whenever it was killed."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self._argv = [sys.executable, "-c", ACQUIRE, str(plan.batch), str(plan.alone), str(QUIET_S)]
        self._environment = {**os.environ, **settings.environment()}
        self._process = self._start()

    def kill(self, random: np.random.Generator) -> None:
        """Kill one of its processes, or all of them."""
        every: list[Any] = [self._process]
        with suppress(psutil.NoSuchProcess):
            every += psutil.Process(self._process.pid).children()
        chosen = every if random.random() < 1 / 3 else [every[random.integers(len(every))]]
        for process in chosen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.revive()

    def revive(self) -> None:
        """Start it again where it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
            self._process = self._start()

    def stop(self) -> None:
        """End it and all its children."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._argv, env=self._environment, start_new_session=True, stderr=subprocess.DEVNULL)


async def _publish_and_kill(
    settings: Settings, plan: Plan, traffic: Traffic, acquisition: _Acquisition
) -> dict[str, int]:
    killing = asyncio.create_task(asyncio.to_thread(_kill, settings, plan, acquisition))
    while not killing.done() or traffic.messages:
        share = max(1, len(traffic.messages) // 20) if not killing.done() else len(traffic.messages)
        part, traffic.messages[:share] = traffic.messages[:share], []
        await _publish(settings, part)
        if not traffic.messages and killing.done():
            break
        await asyncio.sleep(plan.pause_s * plan.kills / 80)
    return await killing


async def _publish(settings: Settings, messages: list[tuple[str, bytes]]) -> None:
    """Publish as the devices do: each its own in order, again and again until the broker has acknowledged."""
    by_device: dict[str, list[tuple[str, bytes]]] = {}
    for subject, payload in messages:
        by_device.setdefault(subject, []).append((subject, payload))
    left = [list(reversed(own)) for own in by_device.values()]
    while any(left):
        connection = asyncio.create_task(_send_all(settings, left))
        await asyncio.wait({connection}, timeout=CONNECTION_S)
        connection.cancel()
        await asyncio.sleep(0.1)


async def _send_all(settings: Settings, left: list[list[tuple[str, bytes]]]) -> None:
    """Send over one connection, until all is acknowledged or something fails."""
    failures = (StoreError, nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)
    try:
        async with broker.platform(settings) as (_, js), asyncio.TaskGroup() as senders:
            for own in left:
                senders.create_task(_send(js, own))
    except* failures:
        pass  # what is left is sent again


async def _send(js: Any, own: list[tuple[str, bytes]]) -> None:
    while own:
        await js.publish(*own[-1], timeout=PUBLISH_S)
        own.pop()


def _kill(settings: Settings, plan: Plan, acquisition: _Acquisition) -> dict[str, int]:
    """Kill something at random moments; a service is started again by its supervisor."""
    random = np.random.default_rng(plan.seed)
    killed = {"acquisition": 0, "nats": 0, "store": 0}
    while sum(killed.values()) < plan.kills:
        time.sleep(random.uniform(0, plan.pause_s))
        acquisition.revive()
        victim = list(killed)[random.integers(len(killed))]
        if victim == "acquisition":
            acquisition.kill(random)
        elif not _kill_service(settings, victim):
            continue  # it is just being started again
        killed[victim] += 1
    return killed


def _kill_service(settings: Settings, name: str) -> bool:
    state = stack_status(settings, PLATFORM)
    pid = next((service.pid for service in state.services if service.name == name), None) if state else None
    with suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _await_end(settings: Settings, acquisition: _Acquisition) -> None:
    """Wait until the tables have the whole stream."""
    lake = Lake(settings)
    deadline = time.monotonic() + SETTLE_S
    while True:
        acquisition.revive()
        with suppress(StoreError):
            if backlog(settings, broker.READINGS, min(positions(lake).values())).messages == 0:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"the stream was not drained within {SETTLE_S:.0f} s: {positions(lake)}")
        time.sleep(0.5)


def _compare(settings: Settings, traffic: Traffic, killed: dict[str, int]) -> Outcome:
    lake = Lake(settings)
    ms = pl.col("event_time").dt.epoch("ms")
    landed = lake.scan("readings").select("device", "value", ms=ms).collect()
    quarantine = lake.scan("quarantine").select("device", "reason", "sequence", "payload").collect()
    doubtful = pl.col("reason").is_in([str(Reason.IN_DOUBT), str(Reason.SUSPENDED)])
    held = _readings_in(quarantine.filter(doubtful)).join(landed, on=["device", "ms"], how="anti")
    stored = pl.concat([landed, held])
    both = traffic.truth.join(stored, on=["device", "ms"], how="full", coalesce=True)
    refused = quarantine.filter(~doubtful)
    kept, total = _malformed(settings)
    found = kept.join(refused, on=["sequence", "payload"], how="full", coalesce=False)
    wrong = both.filter(pl.col("truth").is_null() | (pl.col("truth") != pl.col("value"))).height
    return Outcome(
        sent=total,
        resent=traffic.resent,
        malformed=len(kept),
        late=traffic.late,
        killed=killed,
        readings=len(landed),
        held=len(held),
        quarantined=len(refused),
        lost=both["value"].null_count()
        + found["sequence_right"].null_count()
        + len(traffic.malformed - set(kept["payload"])),
        twice=len(landed)
        - landed.select("device", "ms").n_unique()
        + len(quarantine)
        - quarantine["sequence"].n_unique(),
        wrong=wrong + found["sequence"].null_count(),
    )


def _readings_in(messages: pl.DataFrame) -> pl.DataFrame:
    """Return the readings in well-formed messages."""
    decoded = [msgspec.json.decode(payload) for payload in messages["payload"]]
    rows = messages.select(
        "device", record=pl.Series(decoded, dtype=pl.List(pl.Struct({"t": pl.Int64, "c": pl.Float64})))
    )
    return rows.explode("record").unnest("record").select("device", value="c", ms="t").unique()


def _malformed(settings: Settings) -> tuple[pl.DataFrame, int]:
    """Return position and bytes of the malformed messages in the stream, and how many messages it has in all."""
    rows: list[tuple[int, bytes]] = []

    def keep(batch: Any) -> None:
        rows.extend(pair for pair in zip(batch.sequence.tolist(), batch.payloads, strict=True) if pair[1][:1] != b"[")

    prepare: Callable[..., Any] = lambda messages, _: messages  # noqa: E731
    drained = drain(settings, broker.READINGS, "truth", 0, prepare, keep)
    schema = {"sequence": pl.Int64, "payload": pl.Binary}
    return pl.DataFrame(rows, schema=schema, orient="row"), drained.messages
