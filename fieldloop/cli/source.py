"""`fieldloop source`: where data comes from besides the broker's stream: declared sources, checked and run."""

from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.domain.errors import DocumentError
from fieldloop.stores.settings import Settings

SHOWN_ITEMS: Final = 20

Name = Annotated[str, typer.Argument(help="Name of a declaration in expectations/sources/.")]

app = typer.Typer(help="Where data comes from: files, databases, services.", no_args_is_help=True)


@app.command("list")
def list_sources() -> None:
    """Show the declared sources, and the kinds there are. Exit status 1 if one cannot be used."""
    from fieldloop.stores.sources.declaration import FOLDER, kinds, load_declaration, names

    root, table, wrong = Settings().root, Table(box=None, pad_edge=False), []
    for column in ("source", "kind", "profile", "description"):
        table.add_column(column, overflow="fold")
    for name in names(root):
        try:
            declared = load_declaration(root, name)
            table.add_row(name, declared.kind, declared.profile, declared.description)
        except DocumentError as exc:
            wrong.append(str(exc))
    console = Console(highlight=False)
    console.print(table if table.row_count else f"no usable source in {FOLDER}")
    console.print(f"kinds: {', '.join(kinds())}; the devices of the platform's own broker are read by `acquire`")
    for line in wrong:
        typer.echo(line, err=True)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def check(name: Name) -> None:
    """Show what the next run would read first, and what the profile makes of it; changes nothing."""
    from tasks.collect import preview

    seen = preview(Settings(), name)
    typer.echo(f"in the lake of it: {seen.batches:,} batches, {seen.done_rows:,} rows")
    for failed in seen.failed:
        typer.echo(f"cannot be read: {failed.error}")
    if not seen.item:
        typer.echo("nothing new")
        raise typer.Exit(1 if seen.failed else 0)
    typer.echo(f"next: {seen.item}, {seen.rows:,} rows of {', '.join(seen.devices[:SHOWN_ITEMS]) or 'no device'}")
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("metric", "readings", "lowest", "highest", "first (UTC)", "last (UTC)"):
        table.add_column(column, overflow="fold", no_wrap=column != "metric")
    for metric, readings, low, high, first, last in seen.metrics:
        span = (f"{time:%Y-%m-%d %H:%M}" for time in (first, last))
        table.add_row(metric, f"{readings:,}", f"{low:g}", f"{high:g}", *span)
    Console(highlight=False).print(table)
    for reason, detail, count in seen.refused[:SHOWN_ITEMS]:
        typer.echo(f"refused: {count:,} × {reason}, such as: {detail}")
    raise typer.Exit(1 if seen.failed or seen.refused else 0)


@app.command()
def run(
    name: Name,
    again: Annotated[bool, typer.Option("--again", help="Read everything once more: a profile was mended.")] = False,
) -> None:
    """Bring what is new into the lake, once. Exit status 1 if something could not be read."""
    from tasks.collect import collect

    done = collect(Settings(), name, again)
    if done.forwarded:
        typer.echo(f"{done.forwarded:,} messages passed on to the stream; `acquire` brings them into the lake")
    typer.echo(
        f"{done.rows:,} rows in {done.batches:,} batches: {done.readings:,} new readings of {done.devices:,} devices, "
        f"{done.duplicates:,} were there already, {done.quarantined:,} rows went to quarantine"
    )
    if done.enrolled:
        typer.echo(f"enrolled: {', '.join(done.enrolled)}")
    for failed in done.failed:
        typer.echo(f"not read: {failed.error}", err=True)
    raise typer.Exit(1 if done.failed else 0)
