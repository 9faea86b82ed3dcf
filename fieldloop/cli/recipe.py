"""`fieldloop recipe`: which use cases there are, and what one makes of the data before anything trains."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    import polars as pl

app = typer.Typer(help="What is to be learnt.", no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """List the recipes, each with what it predicts and the algorithms that compete. Needs no platform."""
    from fieldloop.domain.errors import DocumentError
    from fieldloop.domain.recipe import load_recipe, recipe_names

    root, table = Settings().root, Table(box=None, pad_edge=False)
    for column in ("recipe", "predicts", "split", "candidates", "description"):
        table.add_column(column, overflow="fold")
    broken = []
    for name in recipe_names(root):
        try:
            recipe = load_recipe(root, name)
        except DocumentError as exc:
            broken.append(str(exc))
            continue
        algorithms = ", ".join(candidate.algorithm for candidate in recipe.candidates)
        predicts = f"{recipe.target.kind} of {recipe.target_name}" if recipe.target.metric else recipe.target.kind
        table.add_row(name, predicts, f"by {recipe.split.by}", algorithms, recipe.description)
    Console(highlight=False).print(table)
    for message in broken:
        typer.echo(message, err=True)
    raise typer.Exit(1 if broken else 0)


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A file of recipes/ without its ending.")],
) -> None:
    """Show windows, parts, class balance and example rows, and what is wrong, before anything trains.

    Reads the readings of devices that passed validation; writes nothing. Exit status 1 if something speaks against it.
    """
    from tasks.check import check as check_recipe

    checked = check_recipe(Settings(), name)
    console = Console(highlight=False)
    recipe = checked.recipe
    console.print(
        f"recipe {recipe.name}: {recipe.target.kind} `{recipe.target_name}` from {len(recipe.inputs)} channels, "
        f"windows of {recipe.window.length} steps of {recipe.grid.step_s} s, one every {recipe.window.stride}, "
        f"split by {recipe.split.by}",
        soft_wrap=True,
    )
    for title, frame in (("parts", checked.parts), ("devices", checked.devices), ("examples", checked.rows)):
        console.print(f"\n{title}")
        console.print(_table(frame))
    console.print()
    for finding in checked.findings:
        style = "bold red" if finding.severity == "problem" else "yellow"
        console.print(f"{finding.severity}: {finding.text}", style=style, soft_wrap=True, markup=False)
    if not checked.findings:
        console.print("nothing speaks against training")
    raise typer.Exit(0 if checked.sound else 1)


def _table(frame: "pl.DataFrame") -> Table:
    table = Table(box=None, pad_edge=False)
    for column in frame.columns:
        table.add_column(column, justify="right" if frame[column].dtype.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*(_shown(value) for value in row))
    return table


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
