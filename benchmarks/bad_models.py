"""Bad models that install cleanly, on real agents: wrong, slow, leaking, with other numbers; none may pass wave 1."""

import asyncio
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from benchmarks.figure import Figure
from benchmarks.toys import PROFILE_NAME, STEP_US, Toy, make
from fieldloop.domain.enrolment import decode_config
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.rollout.record import Phase, Rollout
from fieldloop.stores import broker, fleet, releases, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local.identities import enrol_targets
from infra.local.servers import prefect_spec
from infra.local.stack import Spec, base_environment, start_stack, stop_stack
from infra.rehearsal.stage import stage
from tasks.deploy import Released
from tasks.rollout import roll_out

TARGETS: Final = ("gw-a", "gw-b", "gw-c")
AGENTS: Final = "agents"  # name of their stack
HEARTBEAT_S: Final = 1.0
MESSAGES_A_SECOND: Final = 40  # of each device, a reading each
PLAN: Final = Plan.model_validate(
    {
        "waves": [{"size": "1", "soak_s": 12}, "all"],
        "limits": {
            "deadline_s": 60,
            "latency_ms": 20,
            "memory_mb": 50,
            "quality": {"least_windows": 100, "required": True},
        },
    }
)
PATIENCE_S: Final = 60.0
MODEL: Final = "toy"


@dataclass(frozen=True)
class Case:
    """A release, what is wrong with it, and the gate that has to find it; None for a sound one."""

    name: str
    toy: Toy
    gate: str | None
    fault: str = ""


CASES: Final = (
    Case("sound", Toy(2, gain=1.01), None),
    Case("wrong", Toy(3, gain=0.5), "shift"),
    Case("wrong_when_windy", Toy(4, beyond=4.0, wrong=0.0), "disagreement"),
    Case("slow", Toy(5, products=1500), "latency"),
    Case("leaking", Toy(6, gain=1.01), "memory", "leak"),
    Case("faulty_runtime", Toy(7, gain=1.01), "failures", "numbers"),
)


def measure() -> Figure:
    """Roll out one sound release and five bad ones to three real agents, each after the first sound one.

    Real: agents as processes, their devices' readings over the broker, release, flow tasks, Prefect's server, gates and
    rollback. The wrong and the slow ones are graphs that are wrong and slow. A graph can neither leak nor change the
    runtime: for these two the agent is started with a runtime that keeps memory, or adds a tenth, for that one version.
    `escaped` counts bad releases that reached a second target or were not rolled back. The peer is a rollout server
    with gates on proof, failures and silence alone: of the same rollouts, those that none of these gates breached.
    """
    with stage({}, [prefect_spec]) as settings:
        os.environ.update(settings.environment())
        _enrol(settings)
        start_stack(settings, AGENTS, [_agent(settings, target) for target in TARGETS])
        stop = threading.Event()
        devices = threading.Thread(target=lambda: asyncio.run(_send(settings, stop)), daemon=True)
        devices.start()
        try:
            with temporary_settings({PREFECT_API_URL: settings.prefect_api}):
                first = _publish(settings, Toy(1))
                _roll(first, Plan())
                outcomes = [_try(settings, case, first) for case in CASES]
        finally:
            stop.set()
            devices.join(PATIENCE_S)
            stop_stack(settings, AGENTS)
    bad = [outcome for outcome in outcomes if outcome["expected"] is not None]
    escaped = sum(not outcome["stopped"] for outcome in bad)
    unseen = sum(outcome["gate"] not in ("failures", "silence") for outcome in bad)
    return Figure(
        figure=escaped,
        unit="bad releases",
        peer="gates on proof, failures and silence alone: bad releases that breached none of them",
        ratio=round(escaped / unseen, 3) if unseen else 0.0,
        further={
            "escaped": escaped,
            "bad": len(bad),
            "peer_escaped": unseen,
            "false_alarms": sum(outcome["expected"] is None and not outcome["passed"] for outcome in outcomes),
            "cases": outcomes,
        },
    )


def _try(settings: Settings, case: Case, before: Released) -> dict[str, Any]:
    """Roll a case out; then bring every agent back to the release before."""
    released = _publish(settings, case.toy)
    began = time.monotonic()
    reason = _roll(released, PLAN)
    seconds = time.monotonic() - began
    rollout = asyncio.run(_newest(settings))
    running = asyncio.run(_running(settings))
    stopped = rollout.phase is Phase.ROLLED_BACK and rollout.asked == 1 and set(running.values()) == {before.digest}
    if case.gate is None:
        _roll(before, Plan())
    return {
        "case": case.name,
        "gate": _breached(rollout),
        "expected": case.gate,
        "passed": rollout.phase is Phase.COMPLETED,
        "stopped": stopped,
        "seconds": round(seconds, 1),
        "findings": rollout.findings,
        "reason": reason[:400],
    }


def _breached(rollout: Rollout) -> str | None:
    return next((line.split(" ")[0] for line in rollout.findings if " breached: " in line), None)


def _roll(released: Released, plan: Plan) -> str:
    """Carry a rollout out in a flow; return why it failed, empty where it did not."""

    @flow(name="bad-models", validate_parameters=False)
    def deploy() -> Any:
        return roll_out(released, [], plan)

    try:
        deploy()
    except ReleaseError as exc:
        return str(exc)
    return ""


def _publish(settings: Settings, toy: Toy) -> Released:
    published = releases.publish(settings, make(MODEL, toy))
    return Released(MODEL, toy.version, "run", published.digest, published.manifest, published.new)


async def _newest(settings: Settings) -> Rollout:
    async with broker.platform(settings) as (_, js):
        return (await rollouts.heads(js))[0].rollout


async def _running(settings: Settings) -> dict[str, str | None]:
    async with broker.platform(settings) as (_, js):
        seen = await rollouts.sightings(js, TARGETS)
    return {target: s.report.running.release if s.report.running else None for target, s in seen.items()}


def _enrol(settings: Settings) -> None:
    enrol_targets(settings, {target: {_device(target): PROFILE_NAME} for target in TARGETS})
    lake = Lake(settings)
    fleet.add_devices(lake, [_device(target) for target in TARGETS], PROFILE_NAME)
    fleet.add_targets(settings, lake, [fleet.Target(target, (_device(target),)) for target in TARGETS])
    for target in TARGETS:
        path = settings.identity_folder("target", target) / "agent.json"
        config = decode_config(path.read_bytes(), str(path))
        quick = msgspec.structs.replace(config, heartbeat_s=HEARTBEAT_S, poll_s=2.0)
        path.write_bytes(msgspec.json.encode(quick))


def _agent(settings: Settings, target: str) -> Spec:
    """Run the agent on a runtime that is faulty for the versions of those cases that say so."""
    faults = {str(case.toy.version): case.fault for case in CASES if case.fault}
    config = settings.data_dir / "agents" / target / "agent.json"
    return Spec(
        name=target,
        title="Agent",
        argv=(sys.executable, "-m", "benchmarks.faulty_agent", json.dumps(faults), str(config)),
        env={**base_environment()},
        cwd=str(Path(__file__).resolve().parents[1]),
        restart=True,
    )


async def _send(settings: Settings, stop: threading.Event) -> None:
    """Send readings as the devices until stopped: wind and pitch that rise and fall slowly, a step each."""
    async with broker.platform(settings) as (_, js):
        step = time.time_ns() // 1000 // STEP_US - 10**6
        while not stop.is_set():
            began = time.monotonic()
            for offset in range(MESSAGES_A_SECOND // 10):
                reading = [{"t": (step + offset) * STEP_US, "w": 1 + (step + offset) * 7 % 17 / 2, "p": 2.0}]
                for target in TARGETS:
                    await js.publish(f"devices.{_device(target)}.readings", json.dumps(reading).encode())
            step += MESSAGES_A_SECOND // 10
            await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


def _device(target: str) -> str:
    return f"dev-{target}"
