"""`fieldloop model`: which models are registered, what one is, and whether it can be made again bit for bit."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.stores.settings import Settings

Reference = Annotated[str, typer.Argument(metavar="VERSION", help="Such as turbine-power/3 or turbine-power@champion.")]

app = typer.Typer(help="The registered models.", no_args_is_help=True)


@app.command("list")
def list_versions(
    model: Annotated[str | None, typer.Argument(help="One model; all where left out.")] = None,
    rows: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many.")] = 50,
) -> None:
    """Show the registered versions, the newest first."""
    from fieldloop.stores import registry
    from tasks.tags import ALGORITHM

    found = registry.versions(Settings(), model)
    table = Table(box=None, pad_edge=False)
    for column in ("version", "alias", "algorithm", "registered (UTC)", "run"):
        table.add_column(column, overflow="fold")
    for each in found[:rows]:
        algorithm = each.tags.get(ALGORITHM, "")
        table.add_row(each.label, ", ".join(each.aliases), algorithm, _moment(each.created_ms), each.run_id)
    console = Console(highlight=False)
    console.print(table if found else "no version is registered: run the flows `train` and `register`")
    if len(found) > rows:
        console.print(f"{len(found) - rows:,} more; --rows shows them")


@app.command()
def show(reference: Reference) -> None:
    """Show what a version was made from, as recorded when it was: algorithm, settings, tables, libraries, code."""
    from fieldloop.stores import registry
    from tasks.rebuild import origin_of_version

    settings = Settings()
    version = registry.named(settings, reference)
    origin = origin_of_version(settings, version)
    settled = {name: value for name, value in origin.candidate.items() if name != "algorithm"}
    rows = {
        "version": f"{version.label} {' '.join(f'@{alias}' for alias in version.aliases)}".rstrip(),
        "page": registry.version_url(settings, version),
        "algorithm": origin.candidate["algorithm"],
        "settings": _pairs(settled) or "none",
        "seed": origin.seed,
        "tables": f"grid/{version.name}@{origin.grid}, windows/{version.name}@{origin.windows}",
        "recipe": origin.recipe,
        "code": origin.code or "no known commit",
        "libraries": _pairs(origin.packages),
        "graph": origin.graph,
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console(highlight=False).print(table)


@app.command()
def rebuild(reference: Reference) -> None:
    """Make a version again from its recorded tables, recipe, settings and seed; exit status 1 unless all bits agree."""
    from fieldloop.stores import registry
    from tasks.rebuild import rebuild as rebuild_version

    settings = Settings()
    made = rebuild_version(settings, registry.named(settings, reference), typer.echo)
    for circumstance in made.circumstances:
        typer.echo(f"not as it was: {circumstance}")
    if made.same:
        typer.echo(f"same: {made.version.label} has been made again bit for bit, SHA-256 {made.graph}")
        return
    typer.echo(f"differs: {made.difference}")
    typer.echo(f"expected SHA-256 {made.origin.graph}, got {made.graph}")
    raise typer.Exit(1)


@app.command()
def approve(
    reference: Reference,
    reason: Annotated[str, typer.Option(help="Why; it stands in the model card.")] = "",
) -> None:
    """Make a version champion for which *register* waits, as its recipe asks for a person's word."""
    _answer(reference, "promote", reason)


@app.command()
def reject(
    reference: Reference,
    reason: Annotated[str, typer.Option(help="Why; it stands in the model card.")] = "",
) -> None:
    """Leave the champion as it is, where *register* waits for a person's word."""
    _answer(reference, "reject", reason)


def _answer(reference: str, choice: str, reason: str) -> None:
    from fieldloop.stores import registry
    from tasks.approval import Choice, answer

    settings = Settings()
    version = registry.named(settings, reference)
    answer(settings, version, Choice(choice), reason)
    typer.echo(f"{version.label}: {choice}; the waiting run goes on within seconds, or, if it was killed, the next one")


def _pairs(values: dict[str, object] | dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _moment(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"
