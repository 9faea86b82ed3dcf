"""Named columns of the feature matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spox import Var


@dataclass(frozen=True)
class Columns:
    """Some columns of the feature matrix.

    Attributes:
        names: [K] such as `wind_speed.mean`.
        values: [N, K] float64.
    """

    names: tuple[str, ...]
    values: Var


def per_channel(metrics: Sequence[str], features: Mapping[str, Var]) -> list[Columns]:
    """Name features that each channel has, [N, C] float64 each."""
    return [Columns(names(metrics, [feature]), values) for feature, values in features.items()]


def names(metrics: Sequence[str], features: Sequence[str]) -> tuple[str, ...]:
    """Return the names of `features` of all channels, a feature's columns side by side."""
    return tuple(f"{metric}.{feature}" for feature in features for metric in metrics)
