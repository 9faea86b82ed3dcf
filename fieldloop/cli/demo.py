"""The demonstration: real turbines' data once round the whole loop, every component the real one.

up → enrol turbines → replay two years → lifecycle (and four agents beside it) → replay a month live → monitor → table
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl
from rich.console import Console
from rich.table import Table

from fieldloop.cli import runs
from fieldloop.cli.enrol import enrol_devices, enrol_targets
from fieldloop.domain.errors import ServiceError
from fieldloop.domain.recipe import load_recipe
from fieldloop.stores import broker, rollouts
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local import platform
from infra.local.stack import Spec, base_environment, start_stack
from infra.local.turbines import source_readings

RECIPE: Final = "turbine-power"
PROFILE: Final = "senvion-mm82"
TURBINES: Final = ("R80711", "R80721", "R80736", "R80790")
Span = tuple[datetime, datetime]
HISTORY: Final = (datetime(2014, 1, 1, tzinfo=UTC), datetime(2016, 1, 1, tzinfo=UTC))
LIVE: Final = (datetime(2015, 12, 1, tzinfo=UTC), datetime(2016, 1, 1, tzinfo=UTC))
QUIET_S: Final = 4.0
REPLAY_TIMEOUT_S: Final = 300
REPORTS_S: Final = 40  # two heartbeats of an agent, and what scoring takes before


@dataclass
class Demo:
    """What the demonstration came to.

    Attributes:
        rows: (what, outcome, seconds) in order; seconds None where they mean nothing.
        wrong: what should have held and did not.
        lifecycle: the loop's run; None until it has ended.
    """

    rows: list[tuple[str, str, float | None]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lifecycle: runs.FinishedRun | None = None

    def add(self, what: str, outcome: str, seconds: float | None = None) -> None:
        """Add a row."""
        self.rows.append((what, outcome, seconds))

    def require(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong unless something holds."""
        if not holds:
            self.wrong.append(otherwise)


def run_demo(settings: Settings, console: Console, history: Span = HISTORY, live: Span = LIVE) -> Demo:
    """Go once round the loop; the platform must be up.

    Args:
        settings: where the platform is.
        console: is told what happens.
        history: event times that are replayed before the loop.
        live: event times, the last of them, that are sent once more when the agents run.

    Raises:
        FieldloopError: a step failed; says which, and where to look.
    """
    demo = Demo()
    console.print("enrolling four turbines", soft_wrap=True)
    enrol_devices(settings, TURBINES, PROFILE)
    with _replaying(settings, "history", history) as replay:
        console.print(f"{_span(history)} of four turbines goes to the broker (MQTT, QoS 1) and through the loop")
        with ThreadPoolExecutor(1) as pool:
            loop = pool.submit(_run, settings, console, "lifecycle", {"recipe": RECIPE, "quiet_seconds": QUIET_S})
            sent = replay.wait()
            _start_agents(settings)
            console.print("  four edge targets are enrolled, their agents run", soft_wrap=True)
            demo.lifecycle = loop.result()
    demo.add("turbines", _sent(sent), sent["seconds"])
    seconds = {stage.name: stage.seconds for stage in demo.lifecycle.stages}
    for row in runs.table(settings, demo.lifecycle, "lifecycle"):
        demo.add(row["stage"], row["outcome"], seconds.pop(row["stage"], None))

    console.print(f"the turbines send {_span(live)} once more, live for the agents", soft_wrap=True)
    with _replaying(settings, "live", live) as replay:
        sent = replay.wait()
    demo.add("turbines, live", _sent(sent), sent["seconds"])
    console.print("the agents score it, and report what they saw at their next heartbeat", soft_wrap=True)
    asyncio.run(_await_reports(settings, console))
    with ThreadPoolExecutor(2) as pool:
        monitored = pool.submit(_run, settings, console, "monitor", {"recipe": RECIPE, "quiet_seconds": QUIET_S})
        acquired = pool.submit(_run, settings, console, "acquire", {})
        _judge_predictions(settings, demo, monitored.result())
        acquired.result()
    _judge_lake(settings, demo, history)
    return demo


def show(console: Console, demo: Demo) -> None:
    """Print the demonstration's table, and in red what should have held and did not."""
    table = Table(title="once round the loop", title_justify="left", pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("outcome", overflow="fold")
    table.add_column("seconds", justify="right")
    shown = ""
    for what, outcome, seconds in demo.rows:
        table.add_row("" if what == shown else what, outcome, "" if seconds is None else f"{seconds:.1f}")
        shown = what
    console.print(table)
    for wrong in demo.wrong:
        console.print(f"WRONG: {wrong}", style="bold red", soft_wrap=True)


def _run(settings: Settings, console: Console, flow: str, parameters: dict[str, Any]) -> runs.FinishedRun:
    started: set[str] = set()

    def say(stage: runs.StageRun) -> None:
        if stage.state == "COMPLETED":
            console.print(f"  {stage.name:11} done   {stage.seconds:5.1f} s", soft_wrap=True)
        elif stage.state == "RUNNING" and stage.name in started:
            console.print(f"  {stage.name:11} …      {stage.seconds:5.1f} s", soft_wrap=True)
        elif stage.state == "RUNNING":
            started.add(stage.name)
            console.print(f"  {stage.name:11} started", soft_wrap=True)

    return runs.run(settings, f"{flow}/{flow}", parameters, say)


@dataclass
class _Replay:
    """Turbines that replay a span in a process of their own."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> dict[str, Any]:
        """Wait until every message is acknowledged, and return the summary.

        Raises:
            ServiceError: the turbines could not send all; names the log.
        """
        try:
            code = self.process.wait(REPLAY_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            raise ServiceError(f"the turbines still send after {REPLAY_TIMEOUT_S} s; see {self.log}") from exc
        if code:
            raise ServiceError(f"the turbines stopped with status {code}; see {self.log}")
        summary: dict[str, Any] = json.loads(self.log.read_text().splitlines()[-1])
        return summary


@contextmanager
def _replaying(settings: Settings, name: str, span: Span) -> Iterator[_Replay]:
    """Start the turbines; whatever happens, none is left running."""
    log = settings.data_dir / "logs" / f"turbines-{name}.log"
    certificates = settings.certificate("device", TURBINES[0])
    command = [
        *(sys.executable, "-m", "infra.local.turbines", "--devices", ",".join(TURBINES)),
        *("--certificates", str(certificates.cert.parents[1]), "--ca", str(certificates.ca)),
        *("--host", settings.host, "--port", str(settings.mqtt_port)),
        *("--from", f"{span[0]:%Y-%m-%d}", "--until", f"{span[1]:%Y-%m-%d}"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=settings.root, env=base_environment(), stdout=output, stderr=output)
    try:
        yield _Replay(process, log)
    finally:
        process.kill()
        process.wait()


def _start_agents(settings: Settings) -> None:
    """Enrol one edge target a turbine, and run their agents as a stack of their own."""
    targets = [Target(f"gw-{turbine}", (turbine,), ("site=la-haute-borne",)) for turbine in TURBINES]
    enrol_targets(settings, targets)
    specs = [
        Spec(
            name=f"agent-{target.name}",
            title=f"Agent of {target.name}",
            argv=(
                sys.executable,
                *("-m", "fieldloop.edge.main", "--config"),
                str(settings.data_dir / "agents" / target.name / "agent.json"),
            ),
            cwd=str(settings.root),
            restart=True,
        )
        for target in targets
    ]
    start_stack(settings, platform.EDGE, specs)


async def _await_reports(settings: Settings, console: Console) -> None:
    """Wait until every agent has told what it saw up to now, or two heartbeats have passed."""
    names = [f"gw-{turbine}" for turbine in TURBINES]
    scored_us = time.time_ns() // 1000 + int(QUIET_S * 1e6)
    async with broker.platform(settings) as (_, js):
        for second in range(REPORTS_S):
            sightings = await rollouts.sightings(js, names)
            told = sum(each.seen_us > scored_us for each in sightings.values())
            if told == len(names):
                return
            if second and second % int(runs.REMIND_S) == 0:
                console.print(f"  agents      …      {second:5.1f} s  {told} of {len(names)} reported", soft_wrap=True)
            await asyncio.sleep(1)


def _span(span: Span) -> str:
    return f"{span[0]:%Y-%m-%d} to {span[1]:%Y-%m-%d}"


def _sent(summary: dict[str, Any]) -> str:
    return f"{summary['records']:,} records with {summary['readings']:,} values in {summary['messages']:,} messages"


def _judge_lake(settings: Settings, demo: Demo, span: Span) -> None:
    """Hold the table `readings` against the source's own distinct readings."""
    from tasks.quarantine import waiting

    lake = Lake(settings)
    sent = pl.col("device").is_in(TURBINES) & pl.col("event_time").is_between(*span, closed="left")
    rows = lake.scan("readings").filter(sent).select(pl.len()).collect().item()
    quarantined = waiting(lake).select(pl.len()).collect().item()
    duplicates = sum(int(commit.get("duplicates", 0)) for commit in lake.metadata("readings"))
    distinct = len(source_readings(*span))
    demo.add("lake", f"{rows:,} readings; the source has {distinct:,} distinct ones")
    demo.add("lake", f"{duplicates:,} duplicates dropped, {quarantined:,} rows wait in quarantine")
    demo.require(rows == distinct, f"the lake has {rows:,} readings, the source {distinct:,}")


def _judge_predictions(settings: Settings, demo: Demo, run: runs.FinishedRun) -> None:
    """Show what the monitor found, and require that the edge scored the lake's windows."""
    row = runs.table(settings, run, "monitored")[0]
    demo.add("monitor", f"{row['predictions']:,} predictions from {row['targets']} targets", run.stages[0].seconds)
    demo.add("monitor", f"windows bit for bit as in the lake: {row['identical']:,} of {row['compared']:,}")
    demo.add("monitor", f"against the truth: MAE {row['mae']:.1f} {row['unit']}, R² {row['r2']:.4f}")
    judged, enough = row["distributions"], load_recipe(settings.root, RECIPE).drift.least_values
    drift = f"{row['drifted'] or 'none'} in {judged} distributions" if judged else f"not judged below {enough:,} values"
    demo.add("monitor", f"drift: {drift}")
    demo.require(not row["drifted"], f"a month of the same turbines counts as drift: {row['drifted']}")
    demo.require(judged or row["predictions"] < enough, "the targets' reports say too little of what they saw")
    demo.require(row["identical"] == row["compared"] > 0, "the edge scored other windows than the lake has")
