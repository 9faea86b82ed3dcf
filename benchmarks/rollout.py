"""Targets proved a minute: a rollout in four waves to ten thousand simulated targets, over the real broker."""

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import psutil
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.figure import Figure
from benchmarks.toys import PROFILE_NAME, Toy, make
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.rollout import State
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.rollout.record import Phase, Rollout
from fieldloop.stores import broker, releases, rollouts
from fieldloop.stores.settings import Settings
from infra.local.platform import PLATFORM
from infra.local.servers import prefect_spec
from infra.local.stack import stack_status
from infra.rehearsal.faults import Fate, Faults
from infra.rehearsal.stage import Cast, Play, enrol, playing, stage
from tasks.deploy import Released
from tasks.rollout import roll_out

TARGETS: Final = int(os.environ.get("FIELDLOOP_BENCH_TARGETS", "10000"))
ARTIFACT_BYTES: Final = 200_000
FAULTS: Final = Faults(silent=0.05, flapping=0.02, corrupting=0.01)
PLAN: Final = Plan.model_validate(
    {
        "waves": [1, "10%", "50%", "all"],
        "limits": {"deadline_s": 45, "failed": 0.04, "silent": 0.1, "quality": {"shadow": False}},
    }
)
LIMIT_S: Final = 120.0  # for the peer
EXPECTED: Final = {
    Fate.WELL: State.PROVED,
    Fate.FLAPPING: State.PROVED,
    Fate.SILENT: State.SILENT,
    Fate.CORRUPTING: State.FAILED,
}


def measure() -> Figure:
    """Roll out to simulated targets: 5 % silent, 2 % losing power again and again, 1 % with disks that damage it.

    Real: the flow's tasks, Prefect's server, the broker with TLS, the store, and of each target its desired state, the
    signed metadata (every target fetches and verifies all five roles for itself, by the rules of TUF's client), the
    download of every byte (a release of 200 kB), its check against what is signed, and its report with the proof.
    `verified` counts these downloads. Simulated: targets are objects in two processes that share two connections; the
    graph is run once a process; releases come whole, not as patches. The peer is the same fleet asked all at once for
    another release, with no flow, waves or gates: what broker and simulation can do. hawkBit 1.0.4 on PostgreSQL, with
    one 200 kB artifact a target and nothing proved, was reported at 3,700-4,500 targets a minute and 1.8 GB on such a
    machine; it is not run here.
    """
    with stage({}, [prefect_spec]) as settings:
        os.environ.update(settings.environment())
        cast = Cast(TARGETS, sites=100, faults=FAULTS, heartbeat_s=20.0, windows_per_s=0.0)
        enrol(settings, cast, PROFILE_NAME)
        old, new, other = (_publish(settings, version) for version in (1, 2, 3))
        with temporary_settings({PREFECT_API_URL: settings.prefect_api}):
            with playing(settings, cast, old.published) as play:
                outcome, seconds = _deploy(new)
                rollout = asyncio.run(_newest(settings))
                memory = _memory(settings)
            truth = play
            with playing(settings, cast, new.published):
                began = time.monotonic()
                limit_count = asyncio.run(_ask_all(settings, truth, other))
                limit_s = time.monotonic() - began
    proved_s = (rollout.proved_us - rollout.issued_us) / 1e6
    proved = rollout.states[State.PROVED]
    figure, peer = proved / proved_s * 60, limit_count / limit_s * 60
    return Figure(
        figure=round(figure),
        unit="targets proved a minute",
        peer="the same fleet asked all at once, with no flow, waves or gates",
        ratio=round(figure / peer, 3),
        further={
            "peer_figure": round(peer),
            "targets": TARGETS,
            "proved": proved,
            "seconds_to_all_proved": round(proved_s, 1),
            "seconds_in_all": round(seconds, 1),
            "phase": rollout.phase,
            "states": rollout.states,
            "wrong_states": _wrong(rollout, truth, new.digest),
            "wire_mb": round(truth.wire_bytes / 1e6, 1),
            "verified": truth.verified,
            "verified_each": "signatures, versions, expiry of five roles; digests of manifest, graph, canary",
            **memory,
            "outcome": outcome,
        },
    )


def _publish(settings: Settings, version: int) -> Released:
    release = make("toy", Toy(version, gain=1 + version / 100, ballast_bytes=ARTIFACT_BYTES))
    published = releases.publish(settings, release)
    return Released("toy", version, "run", published.digest, published.manifest, published.new)


def _deploy(released: Released) -> tuple[str, float]:
    """Run the deployment's own tasks in a flow; return how it ended and how long it took."""

    @flow(name="rollout-benchmark", validate_parameters=False)
    def deploy() -> Any:
        return roll_out(released, [], PLAN)

    began = time.monotonic()
    try:
        deploy()
    except ReleaseError as exc:
        return str(exc), time.monotonic() - began
    return "completed", time.monotonic() - began


async def _newest(settings: Settings) -> Rollout:
    async with broker.platform(settings) as (_, js):
        return (await rollouts.heads(js))[0].rollout


def _wrong(rollout: Rollout, play: Play, digest: str) -> int:
    """Count the targets whose fate and state disagree: by the record's sums, and by what really runs on each."""
    if rollout.phase is not Phase.COMPLETED:
        return TARGETS
    fates = play.fates()
    expected = Counter(EXPECTED[Fate(fate)] for fate in fates.values())
    wrong = sum(abs(expected[state] - rollout.states.get(state, 0)) for state in State)
    running = play.running()
    return wrong + sum((running[t] == digest) != (EXPECTED[Fate(f)] is State.PROVED) for t, f in fates.items())


async def _ask_all(settings: Settings, before: Play, released: Released) -> int:
    """Ask every target at once and wait until those that can have reported the release; return how many."""
    names = tuple(before.fates())
    able = sum(EXPECTED[Fate(fate)] is State.PROVED for fate in before.fates().values())
    async with broker.platform(settings) as (_, js), rollouts.watch(js, names) as watch:
        await rollouts.desire(js, names, released.digest, released.manifest, "peer")
        done: set[str] = set()
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and len(done) < able:
            fresh = await watch.fresh(0.5)
            done |= {t for t, s in fresh.items() if s.report.running and s.report.running.release == released.digest}
        return len(done)


def _memory(settings: Settings) -> dict[str, float]:
    """Return the largest resident memory so far, MB: of the broker, of Prefect's server, and of the flow's process."""
    state = stack_status(settings, PLATFORM)
    pids = {service.name: service.pid for service in state.services} if state else {}
    named = {"broker_mb": pids.get("nats"), "prefect_mb": pids.get("prefect"), "flow_mb": os.getpid()}
    return {name: _peak_mb(pid) for name, pid in named.items() if pid}


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return round(psutil.Process(pid).memory_info().rss / 2**20, 1)
