"""Masks of rows that many expressions share: each is evaluated once a pass, as a column that the others refer to.

Polars does not share such parts by itself: ten expectations on one row condition would compare its column thirty times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl


def fingerprint(expression: pl.Expr) -> bytes:
    """Return what two expressions have in common only if they are the same."""
    return expression.meta.serialize()


@dataclass(frozen=True)
class Masks:
    """The masks of one batch.

    Attributes:
        names: the name of each, by fingerprint.
        expressions: each by name, of the data's own columns alone.
    """

    names: dict[bytes, str] = field(default_factory=dict)
    expressions: dict[str, pl.Expr] = field(default_factory=dict)

    def share(self, mask: pl.Expr) -> pl.Expr:
        """Return a mask as a column, the same for the same mask."""
        name = self.names.setdefault(fingerprint(mask), f"__mask_{len(self.names)}")
        self.expressions.setdefault(name, mask)
        return pl.col(name)

    def behind(self, expressions: Sequence[pl.Expr]) -> Mapping[str, pl.Expr]:
        """Return the masks that expressions refer to."""
        roots = {name for expression in expressions for name in expression.meta.root_names()}
        return {name: mask for name, mask in self.expressions.items() if name in roots}
