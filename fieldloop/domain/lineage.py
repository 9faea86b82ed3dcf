"""Lineage as a tree: a thing, what is known of it, and what it came from or what came of it."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Kind = Literal[
    "table version", "device", "examples", "labels", "validation", "recipe",
    "run", "model version", "release", "rollout", "target",
]  # fmt: skip


class Node(msgspec.Struct, frozen=True):
    """One thing.

    Attributes:
        kind: what it is.
        name: as commands take it.
        facts: what is known of it, by name, in the order in which people read it.
        children: what it came from, or what came of it.
        more: how many further children there are, which are not shown.
    """

    kind: Kind
    name: str
    facts: dict[str, str] = {}
    children: tuple["Node", ...] = ()
    more: int = 0


class Lineage(msgspec.Struct, frozen=True):
    """A thing, in both directions.

    Attributes:
        subject: the thing, without children.
        origins: what it came from.
        uses: what came of it.
        more_origins: how many further origins there are, which are not shown.
        more_uses: and uses.
    """

    subject: Node
    origins: tuple[Node, ...]
    uses: tuple[Node, ...]
    more_origins: int = 0
    more_uses: int = 0


def bounded(node: Node, children: Iterable[Node], most: int) -> Node:
    """Give a node its children, so many at most, and the number of the others."""
    every = tuple(children)
    return msgspec.structs.replace(node, children=every[:most], more=max(0, len(every) - most))
