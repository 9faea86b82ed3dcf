"""`fieldloop keys`: the keys that sign releases."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.domain.errors import ReleaseError
from fieldloop.stores import rotation
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import ROLES, SHORTEST, Keys

WARN_DAYS: Final = 60

app = typer.Typer(help="The keys that sign releases: list, check, renew, rotate, protect.", no_args_is_help=True)


@app.command("list")
def list_keys() -> None:
    """Show each role's key, where it lies, and until when what it has signed is good."""
    settings = Settings()
    table = Table(box=None, pad_edge=False)
    for column in ("role", "key", "kept", "signed version", "expires"):
        table.add_column(column)
    for state in rotation.states(settings):
        expires = f"{state.expires:%Y-%m-%d %H:%M} UTC" if state.expires else "nothing signed yet"
        kept = "offline, encrypted" if state.offline else "online"
        table.add_row(state.role, state.keyid[:16], kept, str(state.version), expires)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"offline keys: {settings.offline_keys}", soft_wrap=True)
    if Keys(settings).unprotected():
        console.print("their passphrase lies beside them, as it was made: `fieldloop keys protect` takes one of yours")


@app.command()
def check(
    days: Annotated[int, typer.Option(min=0, max=3650, help="Tell what expires within so many days.")] = WARN_DAYS,
) -> None:
    """Open every key and look at what expires. Exit status 1 where something is to be done."""
    wrong = rotation.check(Settings(), _ask, datetime.now(UTC), timedelta(days=days))
    for line in wrong:
        typer.echo(line)
    typer.echo("all keys are there and good" if not wrong else f"{len(wrong)} to be seen to")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def renew() -> None:
    """Sign root and targets, by their keys as they are, for another year; agents learn it by themselves."""
    rotation.renew(Settings(), _ask, datetime.now(UTC))
    typer.echo("root and targets are signed anew")


@app.command()
def rotate(
    roles: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(ROLES)}; all where none.")] = None,
) -> None:
    """Replace keys. Agents follow, also those that were away for several rotations; releases stay as they are."""
    wanted = tuple(role for role in ROLES if not roles or role in roles)
    if unknown := set(roles or ()) - set(ROLES):
        raise ReleaseError(f"role {', '.join(sorted(unknown))}: expected some of {', '.join(ROLES)}")
    rotation.rotate(Settings(), wanted, _ask, datetime.now(UTC))
    typer.echo(f"new keys sign for {', '.join(wanted)}")


@app.command()
def protect() -> None:
    """Encrypt the offline keys with a passphrase of yours, which is asked for and kept nowhere."""
    passphrase = typer.prompt(
        f"new passphrase, at least {SHORTEST} characters", hide_input=True, confirmation_prompt=True
    )
    rotation.protect(Settings(), passphrase, _ask)
    typer.echo("the offline keys are protected; without the passphrase nobody can renew or rotate them")


def _ask(prompt: str) -> str:
    return str(typer.prompt(prompt, hide_input=True))
