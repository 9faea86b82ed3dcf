"""Named columns of the feature matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import spox.opset.ai.onnx.v17 as op
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


@dataclass(frozen=True)
class Features:
    """Features that each channel has.

    Attributes:
        names: [F] such as `mean`.
        values: [N, C, F] float64.
    """

    names: tuple[str, ...]
    values: Var


def per_channel(features: Mapping[str, Var]) -> list[Features]:
    """Name features that each channel has, [N, C, 1] float64 each."""
    return [Features((name,), values) for name, values in features.items()]


def columns(metrics: Sequence[str], parts: Sequence[Columns | Features]) -> list[Columns]:
    """Return the columns of all parts, in their order, a channel's side by side; `metrics` are the C channels."""
    found: list[Columns] = []
    together: list[Features] = []
    for part in parts:
        if isinstance(part, Features):
            together.append(part)
            continue
        found += [*_side_by_side(metrics, together), part]
        together = []
    return found + _side_by_side(metrics, together)


def _side_by_side(metrics: Sequence[str], parts: Sequence[Features]) -> list[Columns]:
    """Join features at once: a node for each of them would cost time at the edge."""
    if not parts:
        return []
    features = [feature for part in parts for feature in part.names]
    names = tuple(f"{metric}.{feature}" for metric in metrics for feature in features)
    joined = op.concat([part.values for part in parts], axis=2)
    return [Columns(names, op.reshape(joined, op.const(np.array([-1, len(names)]))))]
