"""Edge targets for the tests: a real broker and store, tiny releases, and agents as processes."""

import asyncio
import json
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from nats.js.api import ConsumerConfig
from numpy.typing import NDArray

from benchmarks import toys
from benchmarks.toys import Toy
from fieldloop.domain import predictions
from fieldloop.domain.alerts import Limits
from fieldloop.domain.enrolment import decode_config
from fieldloop.domain.profile import Channel, Clock, Profile
from fieldloop.domain.release import (
    Budget,
    Canary,
    File,
    Manifest,
    Release,
    encode_canary,
    encode_manifest,
    output_hash,
)
from fieldloop.domain.rollout import Desired, Reported
from fieldloop.domain.windows import WindowSpec
from fieldloop.edge.model import Model
from fieldloop.stores import broker, releases, rollouts
from fieldloop.stores.settings import Settings
from infra.local.identities import enrol_targets

STEP_US = 60_000_000
SPEC = WindowSpec(("wind", "pitch"), ("mean", "mean"), STEP_US, 3)
PROFILE = Profile(
    name="toy",
    format="json",
    device_field=None,
    clock=Clock("t", "epoch_us"),
    cadence_us=STEP_US,
    future_tolerance_us=STEP_US,
    channels=(
        Channel("wind", "w", "m/s", 1.0, 0.0, -1e6, 1e6, "mean"),
        Channel("pitch", "p", "deg", 1.0, 0.0, -1e6, 1e6, "mean"),
    ),
)
REDELIVERY_S = 1.0  # so that a killed agent's messages come again soon
PATIENCE_S = 20.0

T = TypeVar("T")


def make_release(
    model: str = "toy",
    version: int = 1,
    bias: float = 0.0,
    answer: float = 0.0,
    tolerance: float = 0.0,
    fails_above: float | None = None,
    budget: Budget | None = None,
    alerts: Limits | None = None,
) -> Release:
    """Return a release whose graph gives the window's mean plus `bias`; its canary claims `answer` more than that.

    With `fails_above` it breaks at run time on windows with a greater mean, which the canary has none of.
    """
    graph = toys.graph(Toy(version, bias=bias, fails_above=fails_above))
    inputs = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    outputs = Model.load(graph).run(inputs) + np.float32(answer)
    canary = encode_canary(Canary(inputs, outputs))
    manifest = Manifest(
        recipe=model,
        model=model,
        version=version,
        run_id="run",
        window=SPEC,
        profiles={"toy": PROFILE},
        target="power",
        unit="kW",
        features=("mean",),
        graph=File.of(graph),
        canary=File.of(canary),
        output_hash=output_hash(outputs),
        tolerance=tolerance,
        runtime={"onnxruntime": "test"},
        lineage={},
        created_at="2026-01-01T00:00:00+00:00",
        budget=budget or Budget(),
        alerts=alerts,
    )
    return Release(encode_manifest(manifest), graph, canary)


def payload(steps: range) -> bytes:
    """Return one message of a device: a record a step, whose values follow from the step's number."""
    return json.dumps([{"t": (1000 + s) * STEP_US, "w": s * 0.5, "p": -s * 0.25} for s in steps]).encode()


@dataclass
class Gateway:
    """One enrolled target with one device, and its agent's process."""

    settings: Settings
    target: str
    device: str
    config: Path
    _process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start the agent as a process of its own."""
        with (self.config.parent / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fieldloop.edge.main", "--config", str(self.config)], stderr=log
            )

    def limit_files(self, size: int) -> None:
        """Let the agent's files grow no larger."""
        assert self._process is not None
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send the agent a signal and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Hold the agent's process where it is, so that it sees nothing of what lies between."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """What the agent has said."""
        return (self.config.parent / "agent.log").read_text()

    def stop(self) -> None:
        """Kill the agent where it runs."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def desire(self, release: Release) -> None:
        """Publish a release and ask this target to run it."""
        published = releases.publish(self.settings, release)

        async def ask() -> None:
            async with broker.platform(self.settings) as (_, js):
                await rollouts.desire(js, [self.target], published.digest, published.manifest, "test")

        asyncio.run(ask())

    def order(self, desired: Desired) -> None:
        """Write the target's desired state as it is given."""

        async def put() -> None:
            async with broker.platform(self.settings) as (_, js):
                await js.publish(f"$KV.desired.{self.target}", msgspec.json.encode(desired))

        asyncio.run(put())

    def ask(self, path: str) -> tuple[int, bytes]:
        """Ask the agent's endpoint; return status and body."""
        port = (self.config.parent / "state" / "health.port").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read()

    def configure(self, **changes: object) -> None:
        """Change fields of `agent.json`."""
        config = msgspec.json.decode(self.config.read_bytes())
        self.config.write_bytes(msgspec.json.encode(config | changes))

    def report(self) -> Reported | None:
        """Return its last report."""

        async def read() -> Reported | None:
            async with broker.platform(self.settings) as (_, js):
                found = (await rollouts.sightings(js, [self.target])).get(self.target)
                return found.report if found else None

        return asyncio.run(read())

    def await_report(self, wanted: Callable[[Reported], bool]) -> Reported:
        """Wait for a report that satisfies, and return it."""

        def look() -> Reported | None:
            report = self.report()
            return report if report and wanted(report) else None

        return poll(look, lambda: self.log)

    def await_running(self, release: Release) -> Reported:
        """Wait until the target reports that it runs a release."""
        return self.await_report(lambda r: r.running is not None and r.running.release == release.digest)

    def send(self, payloads: list[bytes]) -> None:
        """Send messages as the device."""

        async def publish() -> None:
            async with broker.platform(self.settings) as (_, js):
                for each in payloads:
                    await js.publish(f"devices.{self.device}.readings", each)

        asyncio.run(publish())

    def predictions(self) -> list[predictions.Predictions]:
        """Return all messages of predictions that the broker holds of this target, in order."""

        async def read() -> list[predictions.Predictions]:
            found: list[predictions.Predictions] = []
            async with broker.platform(self.settings) as (_, js):
                info = await js.stream_info("predictions", subjects_filter=">")
                count = (info.state.subjects or {}).get(f"predictions.{self.target}", 0)
                reader = await js.subscribe(f"predictions.{self.target}", stream="predictions", ordered_consumer=True)
                found.extend([predictions.unpack((await reader.next_msg(5)).data) for _ in range(count)])
            return found

        return asyncio.run(read())

    def rows(self) -> dict[int, tuple[float, int]]:
        """Return value and window hash by the windows' end; what came twice must be the same."""
        rows: dict[int, tuple[float, int]] = {}
        for message in self.predictions():
            for end, value, window in zip(*(column.tolist() for column in message.columns()), strict=True):
                assert rows.setdefault(end, (value, window)) == (value, window)
        return rows

    def await_rows(self, count: int) -> dict[int, tuple[float, int]]:
        """Wait until so many windows have been predicted."""

        def look() -> dict[int, tuple[float, int]] | None:
            rows = self.rows()
            return rows if len(rows) >= count else None

        return poll(look, lambda: f"{len(self.rows())} of {count} rows; {self.log}")


def enrol(settings: Settings, target: str) -> Gateway:
    """Give a target its certificate, its consumer and its configuration."""
    device = f"dev-{target}"
    enrol_targets(settings, {target: {device: "toy"}})
    asyncio.run(_consumer(settings, target, device))
    path = settings.identity_folder("target", target) / "agent.json"
    config = decode_config(path.read_bytes(), str(path))
    quick = msgspec.structs.replace(config, redelivery_s=REDELIVERY_S, heartbeat_s=0.5, poll_s=1.0)
    path.write_bytes(msgspec.json.encode(quick))
    return Gateway(settings, target, device, path)


def poll(look: Callable[[], T | None], explain: Callable[[], str], patience_s: float = PATIENCE_S) -> T:
    """Look again and again until there is something, at most so long."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing within {patience_s:.0f} s: {explain()}")


async def _consumer(settings: Settings, target: str, device: str) -> None:
    """Make the target's consumer as the platform does, then shorten its wait for acknowledgements."""
    async with broker.platform(settings) as (_, js):
        await broker.add_agent_consumer(js, target, [device])
        made = (await js.consumer_info("readings", target)).config
        await js.add_consumer("readings", ConsumerConfig(**{**made.__dict__, "ack_wait": REDELIVERY_S}))


def mean_of_windows(steps: range, bias: float = 0.0) -> NDArray[np.float32]:
    """Return what the graph of `make_release` gives on the windows that end at these steps of `payload`."""
    wind = np.array([[0.5 * (s - 2 + k) for k in range(3)] for s in steps], dtype=np.float32)
    pitch = np.array([[-0.25 * (s - 2 + k) for k in range(3)] for s in steps], dtype=np.float32)
    return np.concatenate([wind, pitch], axis=1).mean(axis=1, dtype=np.float32) + np.float32(bias)
