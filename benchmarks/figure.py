"""What every benchmark returns."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A benchmark's outcome.

    Attributes:
        figure: the main figure.
        unit: its unit.
        peer: what it is compared with, measured in the same run.
        ratio: figure over the peer's figure.
        further: more fields, for instance the parts.
    """

    figure: float
    unit: str
    peer: str
    ratio: float
    further: dict[str, Any] = field(default_factory=dict)
