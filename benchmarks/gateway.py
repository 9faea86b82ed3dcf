"""What the edge benchmarks share: a release of a real size, and an agent as a process."""

import asyncio
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnxruntime
import psutil
import xgboost
from nats.js.api import ConsumerConfig
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from fieldloop.domain.enrolment import decode_config
from fieldloop.domain.graph import feature_graph, merge
from fieldloop.domain.profile import Channel, Clock, GridRule, Profile
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.domain.release import Canary, File, Manifest, Release, encode_canary, encode_manifest, output_hash
from fieldloop.domain.rollout import Reported
from fieldloop.domain.windows import WindowSpec
from fieldloop.edge.model import Model
from fieldloop.stores import broker, releases, rollouts
from fieldloop.stores.settings import Settings
from infra.local.identities import enrol_targets

STEP_MS: Final = 1000
BEGIN_MS: Final = 1_700_000_000_000
PATIENCE_S: Final = 60.0
TRAINING_ROWS: Final = 5000


def make_release(root: Path, channels: int, trees: int = 200, seed: int = 7, version: int = 1) -> Release:
    """Return a release of the wind farm's recipe, cut to so many channels: its features, and trees on random data."""
    recipe = load_recipe(root, "turbine-power")
    recipe = recipe.model_copy(update={"channels": recipe.channels[:channels]})
    rule: GridRule = "mean"
    spec = WindowSpec(tuple(c.metric for c in recipe.channels), (rule,) * channels, STEP_MS * 1000, 6)
    features, names = feature_graph(recipe)
    windows = _windows(recipe, TRAINING_ROWS, seed)
    session = onnxruntime.InferenceSession(features.SerializeToString())
    matrix = session.run(None, {"window": windows})[0]
    target = (windows[:, 0].mean(axis=1) * 50 + np.nan_to_num(matrix[:, -1])).astype(np.float32)
    model = xgboost.XGBRegressor(n_estimators=trees, max_depth=6, learning_rate=0.08, random_state=seed, n_jobs=1)
    types = [("input", FloatTensorType([None, matrix.shape[1]]))]
    converted = convert_xgboost(model.fit(matrix, target), initial_types=types, target_opset=15)
    graph = merge(features, converted).SerializeToString()
    inputs = windows[:32]
    outputs = Model.load(graph).run(inputs)
    canary = encode_canary(Canary(inputs, outputs))
    manifest = Manifest(
        recipe="bench", model="bench", version=version, run_id="run", window=spec, profiles={"bench": _profile(spec)},
        target="active_power", unit="kW", features=tuple(names), graph=File.of(graph), canary=File.of(canary),
        output_hash=output_hash(outputs), tolerance=0.05, runtime={"onnxruntime": onnxruntime.__version__}, lineage={},
        created_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return Release(encode_manifest(manifest), graph, canary)


def payload(channels: int, step: int, seed: int) -> bytes:
    """Return a device's message of one step: a value a channel."""
    values = np.random.default_rng((seed, step)).uniform(0, 30, channels).round(2).tolist()
    return msgspec.json.encode({"t": BEGIN_MS + step * STEP_MS, **{f"c{n}": v for n, v in enumerate(values)}})


@dataclass
class Gateway:
    """An enrolled target and its agent."""

    settings: Settings
    target: str
    devices: Sequence[str]
    config: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start the agent."""
        (self.config.parent / "state" / "health.port").unlink(missing_ok=True)
        self.run("fieldloop.edge.main", "--config", str(self.config))

    def run(self, *module: str) -> None:
        """Start a Python module in the agent's place."""
        with (self.config.parent / "agent.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", *module], stderr=log)

    def kill(self) -> None:
        """Kill the agent with -9 and wait for its end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def desire(self, release: Release) -> None:
        """Publish a release and ask for it."""
        published = releases.publish(self.settings, release)

        async def ask() -> None:
            async with broker.platform(self.settings) as (_, js):
                await rollouts.desire(js, [self.target], published.digest, published.manifest, "bench")

        asyncio.run(ask())

    def await_running(self, release: Release) -> None:
        """Wait for the proof of a release."""
        self.await_report(lambda report: report.running is not None and report.running.release == release.digest)

    def await_report(self, wanted: Callable[[Reported], bool]) -> Reported:
        """Wait for a report that satisfies."""

        async def look() -> Reported | None:
            async with broker.platform(self.settings) as (_, js):
                found = (await rollouts.sightings(js, [self.target])).get(self.target)
                return found.report if found and wanted(found.report) else None

        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if (report := asyncio.run(look())) is not None:
                return report
            time.sleep(0.1)
        raise SystemExit(f"{self.target} did not get there: {self.log[-3000:]}")

    @property
    def log(self) -> str:
        """What the agent has said."""
        return (self.config.parent / "agent.log").read_text()

    def well(self) -> bool:
        """Ask the agent's health endpoint."""
        with suppress(OSError, ValueError):
            port = int((self.config.parent / "state" / "health.port").read_text())
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def memory_mb(self) -> dict[str, float]:
        """Return the agent's resident memory, now and at its peak."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return {"rss_mb": round(psutil.Process(self.process.pid).memory_info().rss / 1e6, 1),
                "peak_mb": round(peak * 1024 / 1e6, 1)}  # fmt: skip


def enrol(settings: Settings, target: str, devices: Sequence[str], **changes: Any) -> Gateway:
    """Enrol a target with devices of the benchmark's profile."""
    enrol_targets(settings, {target: dict.fromkeys(devices, "bench")})

    async def add() -> None:
        async with broker.platform(settings) as (_, js):
            await broker.add_agent_consumer(js, target, devices)
            made = (await js.consumer_info(broker.READINGS, target)).config
            wait_s = changes.get("redelivery_s", made.ack_wait)  # agent and consumer must agree on it
            await js.add_consumer(broker.READINGS, ConsumerConfig(**{**made.__dict__, "ack_wait": wait_s}))

    asyncio.run(add())
    path = settings.identity_folder("target", target) / "agent.json"
    config = msgspec.structs.replace(decode_config(path.read_bytes(), str(path)), **changes)
    path.write_bytes(msgspec.json.encode(config))
    return Gateway(settings, target, devices, path)


def _profile(spec: WindowSpec) -> Profile:
    channels = tuple(
        Channel(metric, f"c{number}", "1", 1.0, 0.0, -1e6, 1e6, "mean") for number, metric in enumerate(spec.channels)
    )
    return Profile("bench", "json", None, Clock("t", "epoch_ms"), STEP_MS * 1000, 10**15, channels, ignore=("*",))


def _windows(recipe: Recipe, rows: int, seed: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng(seed).uniform(0, 30, (rows, len(recipe.channels), 6)).astype(np.float32)
