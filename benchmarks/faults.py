"""What an agent loses or breaks: 200 kills, a full disk, an hour without the platform, power cuts at every step.

Release after release is asked for, and the agent killed in turn while it downloads, verifies, switches and scores.
`broken` counts the times at which no whole release was left to run, `lost` the windows whose prediction never came.
The full disk is the process's own limit on file sizes, so that it needs no rights; the hour is an hour of event time.
"""

import asyncio
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
import nats

from benchmarks import gateway
from benchmarks.figure import Figure
from benchmarks.gateway import Gateway
from benchmarks.power import record
from fieldloop.domain import predictions
from fieldloop.domain.enrolment import LocalReadings
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import CANARY, Release, encode_manifest
from fieldloop.edge import files
from fieldloop.edge.slots import Slots, State, read_release
from fieldloop.edge.updater import CHUNKS
from fieldloop.stores import broker
from fieldloop.stores.settings import Settings
from infra.local.ports import free_ports
from infra.local.supervisor import answers
from infra.rehearsal.stage import stage

KILLS: Final = 200
GRAPHS: Final = 3  # one more than an agent keeps, so that the next always has to come
LIVES_S: Final = {"download": 0.3, "verify": 0.2, "switch": 0.05, "scoring": 1.0}  # until a kill, at most, by phase
PHASE_S: Final = 20.0  # for a phase to begin
LOOK_S: Final = 0.002
HOUR_STEPS: Final = 3600  # of a second
CHANNELS: Final = 6
DEVICES: Final = 4
FIRST_STEP: Final = 6  # the first step a device is seen in is left out, and a window has six
DOWNLOAD_BYTES_PER_S: Final = 1_000_000
SEED: Final = 11


def measure() -> Figure:
    """Run all four."""
    return run(KILLS, HOUR_STEPS)


def run(kills: int, hour_steps: int) -> Figure:
    """Run with so many kills, and so long an hour."""
    with stage({}) as settings:
        made = [gateway.make_release(settings.root, CHANNELS, 200, seed=n, version=n) for n in range(1, GRAPHS + 1)]
        found = {
            "kills": _kills(settings, made, kills),
            "full_disk": _full_disk(settings, made),
            "away": _away(settings, made[0], hour_steps),
        }
    found["power_cuts"] = _power_cuts(made)
    broken = sum(part["broken"] for part in found.values())
    lost = sum(part["lost"] for part in found.values())
    return Figure(
        figure=broken + lost,
        unit="failures",
        peer="none wanted",
        ratio=float(broken + lost),
        further={"broken": broken, "lost": lost, **found},
    )


def _kills(settings: Settings, made: list[Release], kills: int) -> dict[str, Any]:
    """Kill the agent again and again while readings come and the desired release changes."""
    target = _enrol(settings, "gw-kills", crashes=10**6, redelivery_s=2.0)
    target.desire(made[0])
    target.start()
    target.await_running(made[0])
    chance, step, broken, moments = random.Random(SEED), 0, 0, Counter[str]()  # noqa: S311 - a simulation
    for number in range(kills):
        phase = list(LIVES_S)[number % len(LIVES_S)]
        if number % len(LIVES_S) == 0:
            wanted = _again(made[number // len(LIVES_S) % GRAPHS], number + 10)
            target.desire(wanted)
        step = _send(target, step, step + 2)
        _await_phase(target, wanted, phase)
        time.sleep(chance.uniform(0.0, LIVES_S[phase]))
        target.kill()
        broken += _is_broken(target)
        moments[_phase(target, wanted)] += 1
        target.start()
    target.desire(made[0])
    target.await_running(made[0])
    step = _send(target, step, step + 5)
    lost, repeated = _settle(target, step)
    target.kill()
    return {"broken": broken, "lost": lost, "repeated_rows": repeated, "kills": kills, "found_at": dict(moments)}


def _full_disk(settings: Settings, made: list[Release]) -> dict[str, Any]:
    """Let the agent write nothing while readings come and another release is wanted; then let it write again."""
    target = _enrol(settings, "gw-full", redelivery_s=2.0)
    target.desire(made[0])
    target.start()
    target.await_running(made[0])
    assert target.process is not None
    step = _send(target, 0, 20)
    resource.prlimit(target.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    target.desire(made[1])
    report = target.await_report(lambda r: r.attempted == made[1].digest and r.error is not None)
    step = _send(target, step, 40)
    time.sleep(3.0)
    broken = _is_broken(target) + (report.running is None) + (target.process.poll() is not None)
    resource.prlimit(target.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    target.await_running(made[1])
    lost, repeated = _settle(target, _send(target, step, 60))
    target.kill()
    return {"broken": broken, "lost": lost, "repeated_rows": repeated, "said": report.error}


def _away(settings: Settings, release: Release, steps: int) -> dict[str, Any]:
    """Take readings from a broker on the gateway for an hour of event time without the platform; kill in between."""
    with tempfile.TemporaryDirectory() as folder:
        server, url = _gateway_broker(Path(folder))
        try:
            target = _enrol(settings, "gw-away", readings=LocalReadings(url))
            target.desire(release)
            target.start()
            target.await_running(release)
            reachable = target.config.read_bytes()
            target.kill()
            away = msgspec.json.decode(reachable) | {"broker": "tls://127.0.0.1:1"}
            target.config.write_bytes(msgspec.json.encode(away))
            target.start()
            _await(lambda: target.well(), "the agent to run without the platform")
            for begin in range(0, steps, steps // 4):
                asyncio.run(_publish(url, target, begin, begin + steps // 4))
                time.sleep(1.0)
                target.kill()
                target.start()
            target.kill()
            broken = _is_broken(target)
            target.config.write_bytes(reachable)
            target.start()
            lost, repeated = _settle(target, steps)
            target.kill()
        finally:
            server.kill()
            server.wait()
    return {
        "broken": int(broken),
        "lost": lost,
        "repeated_rows": repeated,
        "windows": (steps - FIRST_STEP - 1) * DEVICES,
    }


def _power_cuts(made: list[Release]) -> dict[str, Any]:
    """Cut the power at each step of installing, switching and going back."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "state"
        root.mkdir()
        with record(root) as recording:
            slots = Slots(root)
            _install(slots, made[0], 1)
            begun = len(recording.steps)
            _install(slots, made[1], 2)
            slots.revert("errors")
        broken = cuts = 0
        for steps, _, image in recording.images(Path(name) / "cuts", SEED):
            if steps >= begun:
                cuts += 1
                broken += _no_release(image)
                _install(Slots(image), made[1], 3)
                broken += Slots(image).load(made[1].digest) != made[1]
    return {"broken": broken, "lost": 0, "cuts": cuts}


def _install(slots: Slots, release: Release, order: int) -> None:
    staging = slots.staging(release.digest)
    for name, data in release.files().items():
        files.write(staging / name, data)
    slots.install(release.digest)
    slots.switch(release.digest, order)


def _is_broken(target: Gateway) -> bool:
    return _no_release(target.config.parent / "state")


def _no_release(state: Path) -> bool:
    """Say whether the release to run is missing or not whole; reads only."""
    try:
        slots = msgspec.json.decode((state / "slots.json").read_bytes(), type=State)
        release = read_release(state / "releases" / (slots.current or "none"))
        release.open(slots.current or "none")
    except (OSError, msgspec.MsgspecError, ReleaseError):
        return True
    return False


def _again(release: Release, version: int) -> Release:
    """Return the release as another version, which has to be fetched."""
    manifest = msgspec.structs.replace(release.open(release.digest), version=version)
    return Release(encode_manifest(manifest), release.graph, release.canary)


def _await_phase(target: Gateway, wanted: Release, phase: str) -> None:
    """Wait until the agent has got so far with a release; it may be further."""
    begun, order = time.monotonic(), list(LIVES_S)
    while (now := _phase(target, wanted)) not in order[order.index(phase) :]:
        if time.monotonic() > begun + PHASE_S:
            raise SystemExit(f"{target.target} is at {now!r}, not at {phase!r}: {target.log[-3000:]}")
        time.sleep(LOOK_S)


def _phase(target: Gateway, wanted: Release) -> str:
    """Name how far the agent is with a release, by what is on the disk."""
    state, digest = target.config.parent / "state", wanted.digest
    if msgspec.json.decode((state / "slots.json").read_bytes(), type=State).current == digest:
        return "scoring"
    if (state / "releases" / digest).exists():
        return "switch"
    if (state / "incoming" / digest / CANARY).exists():
        return "verify"
    return "download" if any((state / "incoming" / digest).glob(f"{CHUNKS}/*")) else "start"


def _settle(target: Gateway, steps: int) -> tuple[int, int]:
    """Wait for all windows of so many steps; return how many never came, and how many rows came again."""
    wanted = {(device, step) for device in target.devices for step in range(FIRST_STEP, steps - 1)}
    deadline = time.monotonic() + gateway.PATIENCE_S
    while True:
        rows = asyncio.run(_rows(target))
        if wanted <= rows.keys() or time.monotonic() > deadline:
            return len(wanted - rows.keys()), sum(rows.values()) - len(rows)
        time.sleep(1.0)


async def _rows(target: Gateway) -> Counter[tuple[str, int]]:
    """Return how often each window's prediction is in the stream."""
    found: Counter[tuple[str, int]] = Counter()
    subject = f"predictions.{target.target}"
    async with broker.platform(target.settings) as (_, js):
        info = await js.stream_info("predictions", subjects_filter=subject)
        reader = await js.subscribe(subject, stream="predictions", ordered_consumer=True)
        for _ in range((info.state.subjects or {}).get(subject, 0)):
            message = predictions.unpack((await reader.next_msg(5)).data)
            ends = (message.columns()[0] // 1000 - gateway.BEGIN_MS) // gateway.STEP_MS
            found.update(zip(message.owners(), ends.tolist(), strict=True))
    return found


def _enrol(settings: Settings, name: str, **changes: Any) -> Gateway:
    devices = [f"{name}-{number}" for number in range(DEVICES)]
    quick = {"heartbeat_s": 0.5, "poll_s": 1.0, "download_bytes_per_s": DOWNLOAD_BYTES_PER_S}
    return gateway.enrol(settings, name, devices, **{**quick, **changes})


def _send(target: Gateway, begin: int, end: int) -> int:
    """Publish steps of all devices to the platform, acknowledged; return the next step."""

    async def publish() -> None:
        async with broker.platform(target.settings) as (_, js):
            for step in range(begin, end):
                for number, device in enumerate(target.devices):
                    await js.publish(f"devices.{device}.readings", gateway.payload(CHANNELS, step, number))

    asyncio.run(publish())
    return end


async def _publish(url: str, target: Gateway, begin: int, end: int) -> None:
    """Publish steps to the gateway's own broker."""
    client = await nats.connect(url)
    js = client.jetstream()
    for step in range(begin, end):
        for number, device in enumerate(target.devices):
            await js.publish(f"devices.{device}.readings", gateway.payload(CHANNELS, step, number))
    await client.close()


def _gateway_broker(folder: Path) -> tuple["subprocess.Popen[bytes]", str]:
    """Start a NATS server without TLS, as a gateway has it."""
    (port,) = free_ports(1)
    binary = Path(sys.executable).with_name("nats-server")
    options = ["--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", str(folder)]
    server = subprocess.Popen([str(binary), *options], stderr=subprocess.DEVNULL)
    _await(lambda: answers(f"tcp://127.0.0.1:{port}"), "the gateway's broker")
    return server, f"nats://127.0.0.1:{port}"


def _await(done: Any, what: str) -> None:
    deadline = time.monotonic() + gateway.PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.1)
