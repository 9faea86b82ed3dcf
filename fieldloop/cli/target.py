"""`fieldloop target`: the edge targets that run models."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.labels import known_labels
from fieldloop.domain.rollout import Desired, Sighting
from fieldloop.stores import broker, rollouts
from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    from fieldloop.stores.fleet import Target

SHOWN_TARGETS: Final = 100

Labels = Annotated[list[str] | None, typer.Option("--label", help="key=value; repeatable.")]

app = typer.Typer(help="The edge targets that run models.", no_args_is_help=True)


@app.command("add")
def add_target(
    name: Annotated[str, typer.Argument(help="The gateway's name.")],
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="A device whose readings it scores; repeatable; also later.")
    ] = None,
    labels: Labels = None,
) -> None:
    """Let an edge target join: prints a token for `fieldloop-agent enrol` on the gateway, good once, for an hour.

    A target that has joined keeps its certificate; its agent is told of other devices. What is not given stays as it
    is. Without devices it scores nothing, and no rollout asks it.
    """
    from fieldloop.cli.enrol import admit_targets
    from fieldloop.stores import fleet
    from fieldloop.stores.lake import Lake

    settings = Settings()
    known = next((each for each in fleet.targets(Lake(settings)) if each.name == name), fleet.Target(name, ()))
    served = known.devices if devices is None else tuple(devices)
    wanted = fleet.Target(name, served, known.labels if labels is None else tuple(labels))
    tokens = admit_targets(settings, [wanted])
    if not served:
        typer.echo(f"{name} serves no device yet: `fieldloop target add {name} --device NAME` assigns one", err=True)
    if name not in tokens:
        typer.echo(f"{name} has joined; `fieldloop target revoke {name}`, then `add`, gives it a new token", err=True)
    else:
        typer.echo("a token, good once, for an hour; on the gateway: fieldloop-agent enrol --folder DIR", err=True)
        typer.echo(tokens[name])


@app.command("list")
def list_targets(
    labels: Labels = None,
    rows: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = SHOWN_TARGETS,
) -> None:
    """Show targets with what they run and when they were last heard from."""
    from fieldloop.stores import fleet
    from fieldloop.stores.lake import Lake

    settings = Settings()
    there = fleet.targets(Lake(settings))
    chosen = [target for target in there if set(labels or ()) <= set(target.labels)]
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
    console.print(table if chosen else _nobody(labels, there), soft_wrap=not chosen)
    if len(chosen) > rows:
        console.print(f"{len(chosen) - rows:,} more; --rows shows them")


@app.command()
def show(name: Annotated[str, typer.Argument(help="The gateway's name.")]) -> None:
    """Show all that is known of one target, as JSON: labels, devices, certificate, what it is asked for, last report.

    What it is, its hardware, versions and free space, stands in the report's inventory.
    """
    from fieldloop.stores import fleet
    from fieldloop.stores.lake import Lake

    settings = Settings()
    target = next((target for target in fleet.targets(Lake(settings)) if target.name == name), None)
    asked, heard = asyncio.run(_states(settings, [name]))
    seen = heard.sightings
    if target is None and not {name} & (asked.keys() | seen.keys() | heard.unusable.keys()):
        raise ServiceError(f"no such target: {name}; `fieldloop target list` shows those there are")
    known = {
        "labels": target.labels if target else None,
        "devices": target.devices if target else None,
        "identity": _identity(settings, name),
        "asked": asked.get(name),
        "last_report": _age(seen.get(name)),
        "unusable": heard.unusable.get(name),
        "reported": seen.get(name) and seen[name].report,
    }
    typer.echo(msgspec.json.format(msgspec.json.encode(known), indent=2).decode())


@app.command()
def revoke(
    names: Annotated[list[str], typer.Argument(help="Gateways that were lost, stolen or replaced.")],
) -> None:
    """Have the broker refuse targets from now on, and cut their connections; `add` gives one that stays a new token."""
    from fieldloop.cli.enrol import revoke_targets

    revoke_targets(Settings(), names)
    typer.echo(f"revoked: {', '.join(names)}")


@app.command()
def remove(
    names: Annotated[list[str], typer.Argument(help="Gateways that are no longer to run anything.")],
) -> None:
    """Take targets out of the fleet: they are revoked, and nothing is asked of them."""
    from fieldloop.cli.enrol import remove_targets

    remove_targets(Settings(), names)
    typer.echo(f"removed: {', '.join(names)}")


def _nobody(labels: list[str] | None, there: Sequence["Target"]) -> str:
    """Say why no target is shown."""
    if not labels or not there:
        return "no targets yet: `fieldloop target add` enrols one"
    return f"no target bears {' and '.join(labels)}; {known_labels(target.labels for target in there)}"


def _identity(settings: Settings, name: str) -> str:
    """Say in words how a target stands with the broker."""
    from infra.local import roster

    member, issued = roster.member(settings, "target", name), roster.issued(settings, "target", name)
    if member is None:
        return "none: not added, or revoked"
    if issued is not None and roster.joined(settings, "target", name):
        return f"certificate {issued.serial}, good until {_moment(issued.until_us)}"
    return f"not joined; its token is good until {_moment(member.token_until_us)}"


def _moment(at_us: int) -> str:
    return f"{datetime.fromtimestamp(at_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"


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
