"""`fieldloop release`: what is signed for the edge, and taking it back."""

from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from fieldloop.stores import releases
from fieldloop.stores.settings import Settings

Name = Annotated[str, typer.Argument(help="A release, as `list` names it: model/version.")]

app = typer.Typer(help="Releases: list, show, revoke.", no_args_is_help=True)


@app.command("list")
def list_releases() -> None:
    """Show the releases that are signed, and those that were revoked."""
    settings = Settings()
    table = Table(box=None, pad_edge=False)
    for column in ("release", "digest", "bytes", "state"):
        table.add_column(column, overflow="fold")
    for each in releases.signed(settings):
        table.add_row(each.name, each.digest[:12], f"{each.bytes:,}", "signed")
    for entry in releases.revoked(settings):
        table.add_row(entry.name, entry.digest[:12], "", f"revoked {entry.at[:10]}: {entry.reason}")
    Console(highlight=False).print(table if table.row_count else "nothing was released yet: run *deploy*")


@app.command()
def show(name: Name) -> None:
    """Show a release's manifest, as JSON."""
    typer.echo(msgspec.json.format(releases.signed_manifest(Settings(), name), indent=2).decode())


@app.command()
def revoke(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, in words; targets that leave it report this.")],
) -> None:
    """Take a release back: agents leave it as soon as they hear of it, and it is never rolled out or installed again.

    A target goes back to the release before, or runs on until it is asked for another where it has none.
    """
    from tasks.rollback import recall

    settings = Settings()
    entry = releases.revoke(settings, name, reason)
    ended = recall(settings, entry.digest, reason)
    typer.echo(f"{name} is revoked: {entry.reason}" + (f"; ended: {', '.join(ended)}" if ended else ""))
