"""`fieldloop rehearse`: the real deployment flow against simulated targets, before a real rollout."""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.domain.errors import DocumentError, FieldloopError, ServiceError
from fieldloop.domain.release import Manifest
from fieldloop.domain.rollout.record import Rollout
from fieldloop.stores import broker, registry, releases, rollouts
from fieldloop.stores.releases import Published
from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    from fieldloop.domain.rollout.plan import Plan
    from infra.rehearsal.stage import Cast, Play

MEGABYTE: Final = 1e6


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal came to.

    Attributes:
        rollout: name of the rollout.
        phase: how it ended.
        targets: how many simulated targets there were.
        seconds: of the deployment flow.
        proved_s: seconds from its plan until the last target was proved.
        states: targets in each state.
        running: simulated targets that really run the release in the end.
        groups: where the recipe has groups, how many of each one's simulated targets run its own graph in the end.
        wire_bytes: payload over all lines, both ways.
        median_bytes: payload of a target, median.
        findings: what the gates said last, or why it ended.
    """

    rollout: str
    phase: str
    targets: int
    seconds: float
    proved_s: float
    states: dict[str, int]
    running: int
    groups: dict[str, int]
    wire_bytes: int
    median_bytes: int
    findings: tuple[str, ...]


def rehearse(
    recipe: Annotated[str, typer.Option(help="A recipe: a file of recipes/ without its ending.")] = "turbine-power",
    version: Annotated[str, typer.Option(help="`champion`, `challenger`, or a number.")] = "champion",
    before: Annotated[
        str | None, typer.Option("--from", help="Version that the targets run at first; none where left out.")
    ] = None,
    targets: Annotated[int, typer.Option(min=1, max=100_000, help="How many simulated targets.")] = 100,
    sites: Annotated[int, typer.Option(min=1, max=10_000, help="Over how many sites.")] = 1,
    plan: Annotated[Path | None, typer.Option(help="YAML of a plan; the recipe's where left out.")] = None,
    silent: Annotated[float, typer.Option(min=0, max=1, help="Share that is never heard from.")] = 0.0,
    flapping: Annotated[float, typer.Option(min=0, max=1, help="Share that loses power again and again.")] = 0.0,
    corrupting: Annotated[float, typer.Option(min=0, max=1, help="Share whose disks damage what they keep.")] = 0.0,
    faulty: Annotated[float, typer.Option(min=0, max=1, help="Share whose runtime gives other numbers.")] = 0.0,
    drifted: Annotated[float, typer.Option(min=0, max=1, help="Share whose inputs have drifted.")] = 0.0,
    loss: Annotated[float, typer.Option(min=0, max=1, help="Share of requests that are lost.")] = 0.0,
    latency: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds of a request, on average.")] = 0.0,
    offline: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the time that a target is out of reach.")
    ] = 0.0,
    skew: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds that clocks are off, at most.")] = 0.0,
    windows: Annotated[float, typer.Option(min=0, max=86_400, help="Windows a second that a target scores.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all that is drawn: the same again gives the same fates.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Run the real deployment flow against simulated targets and say how long, how much, and what fails.

    Broker, store and lake are the rehearsal's own, started for it and removed again; Prefect and MLflow are the
    platform's, which must be up. The run is in the Prefect UI like any other. Where the recipe has groups, the targets
    bear their labels in turn. Every target verifies the signed metadata and each byte of its release, as an agent does.
    """
    from infra.rehearsal.faults import Faults
    from infra.rehearsal.stage import Cast

    faults = Faults(
        silent=silent, flapping=flapping, corrupting=corrupting, faulty=faulty, drifted=drifted, loss=loss,
        latency_s=latency, offline=offline, skew_s=skew,
    )  # fmt: skip
    cast = Cast(targets, sites, faults=faults, seed=seed, windows_per_s=windows)
    outcome = run(Settings(), recipe, version, before, cast, plan)
    if as_json:
        typer.echo(json.dumps(asdict(outcome)))
    else:
        _show(outcome)
    raise typer.Exit(0 if outcome.phase == "completed" else 1)


def run(
    settings: Settings, recipe: str, version: str, before: str | None, cast: "Cast", plan: Path | None
) -> Rehearsed:
    """Rehearse, and return what it came to.

    Raises:
        FieldloopError: the platform is not up, or there is no such version.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from fieldloop.domain.recipe import load_recipe
    from infra.rehearsal.stage import NOTHING, enrol, playing, stage
    from tasks.deploy import release

    learnt, own_plan = load_recipe(settings.root, recipe), _plan(plan)
    if learnt.groups is not None:
        cast = replace(cast, groups=tuple(f"{learnt.groups.label}={group}" for group in learnt.groups.of))
    else:
        registry.version(settings, recipe, version)  # before a stage is set up for nothing
    real = {"prefect_url": settings.prefect_ui, "mlflow_url": settings.mlflow_endpoint}
    with stage(real) as own, _environment(own), temporary_settings({PREFECT_API_URL: own.prefect_api}):
        enrol(own, cast, learnt.profiles[0])
        installed = release(own, recipe, before).published if before else NOTHING
        with playing(own, cast, installed) as play:
            began = time.monotonic()
            reason = _deploy(recipe, version, own_plan)
            seconds = time.monotonic() - began
            rollout = asyncio.run(_newest(own, reason))
            manifest = releases.manifest_of(own, Published(rollout.release, rollout.manifest, new=False))
    received = [each.received_bytes for part in play.outcomes for each in part.gateways.values()]
    return Rehearsed(
        rollout=rollout.name,
        phase=rollout.phase,
        targets=cast.targets,
        seconds=round(seconds, 1),
        proved_s=round(max(rollout.proved_us - rollout.issued_us, 0) / 1e6, 1),
        states={str(state): count for state, count in rollout.states.items()},
        running=sum(digest == rollout.release for digest in play.running().values()),
        groups=_in_groups(manifest, cast, play),
        wire_bytes=play.wire_bytes,
        median_bytes=round(statistics.median(received)),
        findings=rollout.findings,
    )


def _in_groups(manifest: Manifest, cast: "Cast", play: "Play") -> dict[str, int]:
    """Count the targets of each group that run its graph."""
    graphs, labels = play.graphs(), cast.labels()
    return {
        each.name: sum(
            set(each.labels) <= set(own) and graphs[target] == each.graph.sha256 for target, own in labels.items()
        )
        for each in manifest.variants
    }


def _plan(path: Path | None) -> "Plan | None":
    """Read a plan.

    Raises:
        DocumentError: there is none, or it makes no sense.
    """
    from fieldloop.domain.document import load
    from fieldloop.domain.rollout.plan import Plan

    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DocumentError(f"{path}: expected the YAML of a plan: {exc}") from exc
    return load(Plan, text, str(path))


def _deploy(recipe: str, version: str, plan: "Plan | None") -> str:
    """Run the deployment flow in this process; return why it failed, empty where it did not."""
    from flows.deploy import deploy

    try:
        deploy(recipe, version, plan=plan)
    except FieldloopError as exc:
        return str(exc)
    return ""


async def _newest(settings: Settings, reason: str) -> Rollout:
    """Return the stage's only rollout.

    Raises:
        ServiceError: the flow failed before there was one.
    """
    async with broker.platform(settings) as (_, js):
        heads = await rollouts.heads(js)
    if not heads:
        raise ServiceError(f"the deployment failed before its rollout began: {reason}")
    return heads[0].rollout


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Let the flow's tasks, which read their settings from the environment, find the stage."""
    before = {name: value for name, value in os.environ.items() if name.startswith("FIELDLOOP_")}
    os.environ.update(settings.environment())
    try:
        yield
    finally:
        for name in settings.environment():
            os.environ.pop(name, None)
        os.environ.update(before)


def _show(outcome: Rehearsed) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for what, text in (
        ("rollout", f"{outcome.rollout}: {outcome.phase}"),
        ("takes", f"{outcome.seconds:.1f} s in all, {outcome.proved_s:.1f} s until the last target is proved"),
        ("moves", f"{outcome.wire_bytes / MEGABYTE:,.1f} MB, {outcome.median_bytes / 1e3:,.0f} kB a target (median)"),
        ("targets", ", ".join(f"{count:,} {state}" for state, count in outcome.states.items()) or "none asked"),
        ("runs on", f"{outcome.running:,} of {outcome.targets:,} in the end"),
        *(("", f"{count:,} of them on the graph of group {name}") for name, count in outcome.groups.items()),
        *(("", finding) for finding in outcome.findings),
    ):
        table.add_row(what, text)
    Console(highlight=False).print(table)
