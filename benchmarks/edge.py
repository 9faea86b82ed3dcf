"""From a reading stored by the broker to its prediction stored there, at 100 and 5,000 readings/s; the agent's memory.

Both times are the broker's own stamps. The readings come from 100 devices in turn, and each message completes a window
of the wind farm's features and 200 trees: in the hard case a message has one reading, so that 5,000 windows are scored
a second; in the other one it has six, 833 windows a second. `late_p99_ms` is how far the sender itself fell behind its
clock. At the high rate each case runs three times and the middle run counts; `p99_each_ms` has all three: where the
machine itself stands still for some milliseconds a second, a run shows that and not the agent.
Peers in the same run: one window through a bare ONNX Runtime session, and through MLflow's scoring server; and a
process in the agent's place that answers what comes at once (`echo`), for the share of broker, sender and machine.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import mlflow
import numpy as np
import onnx
import psutil
from mlflow.models import infer_signature

from benchmarks import gateway
from benchmarks.figure import Figure
from benchmarks.gateway import Gateway
from fieldloop.domain import predictions
from fieldloop.domain.release import Release, decode_canary
from fieldloop.edge.model import Model
from fieldloop.stores import broker, drain
from fieldloop.stores.pull import Pulled, Puller
from fieldloop.stores.settings import Settings
from infra.local.ports import free_ports
from infra.rehearsal.stage import stage

SINGLE, SIX = 1, 6  # readings a message
RATES: Final = {100: 1, 5000: 3}  # readings/s, and how often
HIGH: Final = max(RATES)
WARM_S: Final = 3.0
RUN_S: Final = 9.0
TICK_S: Final = 0.001
DEVICES: Final = 100
PREFILL_STEPS: Final = 8  # of each device, before the clock runs
BARE_RUNS: Final = 5000
SERVED_RUNS: Final = 300


Moments = dict[tuple[str, int], int]  # (device, step): nanoseconds since the epoch


def measure() -> Figure:
    """Run an agent for each kind of message at each rate, then the peers."""
    further: dict[str, Any] = {}
    with stage({}) as settings:
        for name, readings in (("single", SINGLE), ("six", SIX)):
            release = gateway.make_release(settings.root, readings)
            devices = [f"dev-{readings}-{number:03}" for number in range(DEVICES)]
            target = gateway.enrol(settings, f"gw-{readings}", devices)
            target.desire(release)
            target.start()
            target.await_running(release)
            asyncio.run(_publish(target, readings, range(PREFILL_STEPS), None))
            step = PREFILL_STEPS
            for rate, runs in RATES.items():
                found = []
                for _ in range(runs):
                    found.append(_run(target, readings, step, rate))
                    step += _steps(rate / readings)
                found.sort(key=lambda run: run["p99_ms"])
                further |= {f"{name}_{rate}_{key}": value for key, value in found[runs // 2].items()}
                further[f"{name}_{rate}_p99_each_ms"] = [run["p99_ms"] for run in found]
            further |= {f"{name}_{key}": value for key, value in target.memory_mb().items()}
            further[f"{name}_start_s"] = _start(target)
            target.kill()
        further |= _echo(settings) | _bare(release) | _served(release)
    p99 = further[f"single_{HIGH}_p99_ms"]
    return Figure(
        figure=p99,
        unit="ms",
        peer="MLflow's scoring server, one window a request, p99",
        ratio=round(p99 / further["mlflow_p99_ms"], 4),
        further={"p99_ms": p99, "rss_mb": further["six_rss_mb"], **further},
    )


def _echo(settings: Settings) -> dict[str, float]:
    """Have each message answered with no work done, at the highest rate of single readings."""
    target = gateway.enrol(settings, "gw-echo", [f"dev-echo-{number:03}" for number in range(DEVICES)])
    target.run("benchmarks.echo", str(target.config))
    try:
        found = _run(target, SINGLE, 1, HIGH)
    finally:
        target.kill()
    return {f"echo_{HIGH}_{key}": value for key, value in found.items()}


def _run(target: Gateway, readings: int, first: int, rate: int) -> dict[str, float]:
    """Publish at a rate, of readings a second, from a step on; return what came of it after the warm-up."""
    begun_ns = time.time_ns()
    late = asyncio.run(_publish(target, readings, range(first, first + _steps(rate / readings)), rate / readings))
    return _latency(target, begun_ns + round(WARM_S * 1e9)) | {"late_p99_ms": late}


def _steps(rate: float) -> int:
    """Return the steps of a run of so many messages a second."""
    return round((WARM_S + RUN_S) * rate / DEVICES)


async def _publish(target: Gateway, readings: int, steps: range, rate: float | None) -> float:
    """Publish steps of all devices, so many messages a second; return by how many ms 1 % of them was late."""
    payloads = [gateway.payload(readings, step, device) for step in steps for device in range(DEVICES)]
    late = []
    async with broker.platform(target.settings) as (client, _):
        with _uncollected():
            began = time.perf_counter()
            for number, payload in enumerate(payloads):
                while rate is not None and number > (time.perf_counter() - began) * rate:
                    await asyncio.sleep(TICK_S)
                late.append(time.perf_counter() - began - number / (rate or 1))
                await client.publish(f"devices.{target.devices[number % DEVICES]}.readings", payload)
            await client.flush()
    return round(float(np.quantile(late, 0.99)) * 1e3, 3)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let no garbage collection in this large process hold the sender up."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _latency(target: Gateway, from_ns: int) -> dict[str, float]:
    """Return quantiles from a reading stored to its prediction stored, of the readings since a moment."""
    deadline = time.monotonic() + gateway.PATIENCE_S
    sent = {key: moment for key, moment in _readings(target).items() if moment >= from_ns}
    while True:
        done = _predictions(target)
        if sent.keys() <= done.keys() or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    waits = np.array([done[key] - moment for key, moment in sent.items() if key in done])
    p50, p99 = np.quantile(waits, [0.5, 0.99]) / 1e6
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "windows": len(waits),
            "missing": len(sent) - len(waits)}  # fmt: skip


def _readings(target: Gateway) -> Moments:
    """Return when each message of the target's devices was stored, by the window that it completes."""
    mine = set(target.devices)
    found: Moments = {}
    for subject, payload, moment in _stream(target, "readings"):
        device = subject.split(".")[1]
        if device in mine:
            found[device, (json.loads(payload)["t"] - gateway.BEGIN_MS) // gateway.STEP_MS - 1] = moment
    return found


def _predictions(target: Gateway) -> Moments:
    """Return when each window's prediction was stored."""
    found: Moments = {}
    for subject, payload, moment in _stream(target, "predictions"):
        if subject == f"predictions.{target.target}":
            message = predictions.unpack(payload)
            for device, end_us in zip(message.owners(), message.columns()[0].tolist(), strict=True):
                found[device, (end_us // 1000 - gateway.BEGIN_MS) // gateway.STEP_MS] = moment
    return found


def _stream(target: Gateway, stream: str) -> list[tuple[str, bytes, int]]:
    """Return a stream's messages: subject, payload and the broker's time, nanoseconds since the epoch."""

    async def add() -> int:
        async with broker.platform(target.settings) as (_, js):
            return await drain.add_consumer(js, stream, "bench", 0)

    pending, pulled = asyncio.run(add()), Pulled()
    certificate = target.settings.certificate("platform", "platform")
    with Puller(target.settings.nats_endpoint, certificate, stream, "bench") as puller:
        while len(pulled.payloads) < pending:
            puller.read(pulled, pending - len(pulled.payloads), drain.PULL_WAIT_S)
    moments = [int(reply.split(b".")[7]) for reply in pulled.replies]
    return list(zip([subject.decode() for subject in pulled.subjects], list(pulled.payloads), moments, strict=True))


def _start(target: Gateway) -> float:
    """Kill the agent and start it again; return the seconds until it scores."""
    target.kill()
    began = time.monotonic()
    target.start()
    while not target.well():
        time.sleep(0.01)
    return round(time.monotonic() - began, 2)


def _bare(release: Release) -> dict[str, float]:
    """Run one window after the other through a session."""
    model, window = Model.load(release.graph), decode_canary(release.canary).inputs[:1]
    return _timed("bare", BARE_RUNS, lambda: model.run(window))


def _served(release: Release) -> dict[str, float]:
    """Ask MLflow's scoring server for one window after the other."""
    window = decode_canary(release.canary).inputs[:1]
    body = json.dumps({"inputs": {"window": window.tolist()}}).encode()
    (port,) = free_ports(1)
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})

    def ask() -> None:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
            answer.read()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        graph, signature = onnx.load_from_string(release.graph), infer_signature({"window": window})
        mlflow.onnx.save_model(graph, str(path), pip_requirements=["onnxruntime"], signature=signature)
        serve = ["mlflow", "models", "serve", "--model-uri", str(path), "--env-manager", "local", "--port", str(port)]
        command = [sys.executable, "-m", *serve]
        began = time.monotonic()
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            _await(ask)
            started = round(time.monotonic() - began, 2)
            found = _timed("mlflow", SERVED_RUNS, ask)
            family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            memory = round(sum(process.memory_info().rss for process in family) / 1e6, 1)
        finally:
            for process in psutil.Process(server.pid).children(recursive=True):
                process.kill()
            server.kill()
            server.wait()
    return {**found, "mlflow_rss_mb": memory, "mlflow_start_s": started}


def _await(ask: Callable[[], None]) -> None:
    deadline = time.monotonic() + gateway.PATIENCE_S
    while True:
        with suppress(OSError):
            return ask()
        if time.monotonic() > deadline:
            raise SystemExit("MLflow's scoring server does not answer")
        time.sleep(0.1)


def _timed(name: str, runs: int, work: Callable[[], object]) -> dict[str, float]:
    """Return the quantiles of the time that a piece of work takes, milliseconds."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {f"{name}_p50_ms": round(float(p50), 4), f"{name}_p99_ms": round(float(p99), 4)}
