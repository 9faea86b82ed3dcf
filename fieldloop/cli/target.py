"""`fieldloop target`: the edge targets that run models."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.rollout import Desired, Sighting
from fieldloop.stores import broker, rollouts
from fieldloop.stores.settings import Settings

SHOWN_TARGETS: Final = 100

Labels = Annotated[list[str] | None, typer.Option("--label", help="key=value; repeatable.")]

app = typer.Typer(help="The edge targets that run models.", no_args_is_help=True)


@app.command("add")
def add_target(
    name: Annotated[str, typer.Argument(help="The gateway's name.")],
    devices: Annotated[list[str], typer.Option("--device", help="A device whose readings it scores; repeatable.")],
    labels: Labels = None,
) -> None:
    """Enrol an edge target: certificate, rights, its consumer, and the folder that its agent starts from."""
    from fieldloop.cli.enrol import enrol_targets
    from fieldloop.stores.fleet import Target

    settings = Settings()
    enrol_targets(settings, [Target(name, tuple(devices), tuple(labels or ()))])
    typer.echo(f"start its agent: fieldloop-agent --config {settings.data_dir / 'agents' / name / 'agent.json'}")


@app.command("list")
def list_targets(
    labels: Labels = None,
    rows: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = SHOWN_TARGETS,
) -> None:
    """Show targets with what they run and when they were last heard from."""
    from fieldloop.stores import fleet
    from fieldloop.stores.lake import Lake

    settings = Settings()
    chosen = [target for target in fleet.targets(Lake(settings)) if set(labels or ()) <= set(target.labels)]
    asked, heard = asyncio.run(_states(settings, [target.name for target in chosen]))
    table = Table(box=None, pad_edge=False)
    for column in ("target", "labels", "runs", "asked for", "last report", "trouble"):
        table.add_column(column, overflow="fold")
    for target in chosen[:rows]:
        sighting, order = heard.sightings.get(target.name), asked.get(target.name)
        wanted = order.release[:12] or "nothing" if order else ""
        trouble = heard.unusable.get(target.name) or _trouble(sighting)
        table.add_row(target.name, ", ".join(target.labels), _runs(sighting), wanted, _age(sighting), trouble)
    console = Console(highlight=False)
    console.print(table if chosen else "no such target: `fieldloop target add` enrols one")
    if len(chosen) > rows:
        console.print(f"{len(chosen) - rows:,} more; --rows shows them")


@app.command()
def show(name: Annotated[str, typer.Argument(help="The gateway's name.")]) -> None:
    """Show all that is known of one target: what it is asked for and its last report, as JSON."""
    asked, heard = asyncio.run(_states(Settings(), [name]))
    seen = heard.sightings
    if not {name} & (asked.keys() | seen.keys() | heard.unusable.keys()):
        raise ServiceError(f"target {name!r} was never asked for anything and has never reported")
    known = {
        "asked": asked.get(name),
        "last_report": _age(seen.get(name)),
        "unusable": heard.unusable.get(name),
        "reported": seen.get(name) and seen[name].report,
    }
    typer.echo(msgspec.json.format(msgspec.json.encode(known), indent=2).decode())


@app.command()
def remove(
    names: Annotated[list[str], typer.Argument(help="Gateways that are no longer to run anything.")],
) -> None:
    """Take targets out of the fleet: their certificates are refused from now on, and nothing is asked of them."""
    from fieldloop.cli.enrol import remove_targets

    remove_targets(Settings(), names)
    typer.echo(f"removed: {', '.join(names)}")


async def _states(settings: Settings, names: list[str]) -> tuple[dict[str, Desired], rollouts.Heard]:
    async with broker.platform(settings) as (_, js):
        held = await rollouts.held(js, names)
        return {t: h.desired for t, h in held.items() if h.desired}, await rollouts.heard(js, names)


def _runs(sighting: Sighting | None) -> str:
    running = sighting.report.running if sighting else None
    return f"{running.model} {running.version} ({running.release[:12]})" if running else "nothing"


def _age(sighting: Sighting | None) -> str:
    if sighting is None:
        return "never"
    seconds = datetime.now(UTC).timestamp() - sighting.seen_us / 1e6
    return f"{seconds:,.0f} s ago"


def _trouble(sighting: Sighting | None) -> str:
    return (sighting.report.error or "") if sighting else ""
