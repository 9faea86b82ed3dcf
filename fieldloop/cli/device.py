"""`fieldloop device`: enrol devices, see how they stand, set them aside, readmit them with their backlog."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    from fieldloop.stores.standing import Standing

Names = Annotated[list[str], typer.Argument(help="The devices' names.")]

app = typer.Typer(help="The devices that publish readings.", no_args_is_help=True)


@app.command()
def add(
    names: Annotated[list[str], typer.Argument(help="Names, as they stand in the devices' topics.")],
    profile: Annotated[str, typer.Option(help="Device profile: a file of expectations/profiles/ without its ending.")],
) -> None:
    """Let devices join: prints a token each for `fieldloop-agent enrol`, good once, for an hour.

    Where a device cannot run that, enrol on another machine and put the folder's two files on the device.
    """
    from fieldloop.cli.enrol import admit_devices

    tokens = admit_devices(Settings(), names, profile)
    for name in names:
        if name not in tokens:
            typer.echo(f"{name} has joined; `fieldloop device revoke {name}`, then `add`, gives a new token", err=True)
    if tokens:
        typer.echo("tokens, good once, for an hour: fieldloop-agent enrol --folder DIR", err=True)
    for name, token in tokens.items():
        typer.echo(f"for {name}:", err=True)
        typer.echo(token)


@app.command("list")
def list_devices(
    suspended: Annotated[bool, typer.Option("--suspended", help="Only those that are set aside or held.")] = False,
) -> None:
    """Show every device with its profile and how it stands."""
    from fieldloop.domain.readings import Reason
    from fieldloop.stores import fleet
    from fieldloop.stores.lake import Lake
    from fieldloop.stores.standing import standings
    from tasks.contracts import waiting_devices
    from tasks.quarantine import waiting

    lake = Lake(Settings())
    standing, doubted = standings(lake), waiting_devices(waiting(lake), Reason.IN_DOUBT)
    table = Table(box=None, pad_edge=False)
    for column in ("device", "profile", "stands", "since (UTC)", "why"):
        table.add_column(column, overflow="fold")
    for name, profile in fleet.devices(lake).items():
        known = standing.get(name)
        if known is not None and known.suspended:
            table.add_row(name, profile, "suspended", _moment(known.at), known.why())
        elif name in doubted:
            table.add_row(name, profile, "in doubt", "", "messages held; `fieldloop quarantine show` has them")
        elif not suspended:
            table.add_row(name, profile, "good", "", "")
    console = Console(highlight=False)
    console.print(table if table.row_count else "no device is set aside" if suspended else "no device is enrolled")


@app.command()
def show(name: Annotated[str, typer.Argument(help="The device's name.")]) -> None:
    """Show how a device stands, what was decided about it, and what of it waits in quarantine."""
    from fieldloop.stores import fleet
    from fieldloop.stores.lake import Lake
    from fieldloop.stores.standing import decisions
    from tasks.quarantine import Choice, summary

    lake = Lake(Settings())
    profile = fleet.devices(lake).get(name)
    typer.echo(f"{name}: profile {profile}" if profile else f"{name}: not enrolled")
    for standing in decisions(lake, name):
        typer.echo(_line(standing))
    for row in summary(lake, Choice(device=name)).iter_rows(named=True):
        typer.echo(f"  waits in quarantine: {row['messages']:,} messages, {row['reason']}")


@app.command()
def revoke(names: Names) -> None:
    """Have the broker refuse devices from now on, and cut their connections; what they sent stays."""
    from fieldloop.cli.enrol import revoke_devices

    revoke_devices(Settings(), names)
    typer.echo(f"revoked: {', '.join(names)}")


@app.command()
def suspend(
    names: Names,
    reason: Annotated[str, typer.Option(help="Why, for those who look at it later.")],
) -> None:
    """Set devices aside: what they send waits in quarantine until they are readmitted."""
    from tasks.readmission import suspend_devices

    suspend_devices(Settings(), names, reason)
    typer.echo(f"suspended: {', '.join(names)}")


@app.command()
def readmit(names: Names) -> None:
    """Readmit devices because what they send is right; they are learnt anew, and what waited of them lands."""
    from tasks.readmission import readmit_devices

    done = readmit_devices(Settings(), names)
    typer.echo(
        f"readmitted: {', '.join(names)}; {done.messages:,} messages replayed, {done.readings:,} new readings, "
        f"{done.refused:,} rows stay in quarantine"
    )


def _line(standing: "Standing") -> str:
    why = f": {standing.why()}" if standing.why() else ""
    return f"  {_moment(standing.at)} UTC  {standing.state} by {standing.by}{why}"


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"
