"""`fieldloop lineage`: where a thing comes from and what came of it, as a tree or as JSON."""

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    from fieldloop.domain.lineage import Node

_WIDTH: Final = 250  # columns where no terminal says


def lineage(
    thing: Annotated[
        str,
        typer.Argument(
            help="A release's digest, a model version (turbine-power/3, turbine-power@champion), an MLflow run, a "
            "device, a target, a table version (readings@12, windows/turbine-power@3), or labels (a file, or faults@3)."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    rows: Annotated[int, typer.Option(min=1, max=10_000, help="Branches of a knot, at most.")] = 20,
) -> None:
    """Show what a release, model, run, device, target or table version came from, and what came of it."""
    from tasks.lineage import lineage as recorded

    found = recorded(Settings(), thing, rows)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    directions = (("came from", found.origins, found.more_origins), ("led to", found.uses, found.more_uses))
    for title, nodes, more in directions:
        tree = Tree(f"{_line(found.subject)}  [bold]{title}[/bold]{'' if nodes else ' nothing that is recorded'}")
        for node in nodes:
            _grow(tree, node)
        if more:
            tree.add(f"{more:,} more; --rows shows them")
        console.print(tree)


def _grow(tree: Tree, node: "Node") -> None:
    branch = tree.add(_line(node))
    for child in node.children:
        _grow(branch, child)
    if node.more:
        branch.add(f"{node.more:,} more; --rows shows them")


def _line(node: "Node") -> str:
    facts = "  ".join(f"[dim]{name}[/dim] {escape(value)}" for name, value in node.facts.items())
    return f"{node.kind} [bold]{escape(node.name)}[/bold]  {facts}".rstrip()
