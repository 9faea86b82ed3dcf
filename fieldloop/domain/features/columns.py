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
        values: [N, C, K] float64.
        places: [F] their columns in `values`.
        width: K.
    """

    names: tuple[str, ...]
    values: Var
    places: tuple[int, ...] = (0,)
    width: int = 1


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
    wholes = [_whole([part for part in parts if part.values is values]) for values in _values(parts)]
    features = [feature for whole in wholes for feature in whole.names]
    names = tuple(f"{metric}.{feature}" for metric in metrics for feature in features)
    joined = op.concat([whole.values for whole in wholes], axis=2)
    return [Columns(names, op.reshape(joined, op.const(np.array([-1, len(names)]))))]


def _values(parts: Sequence[Features]) -> list[Var]:
    """Each of the parts' values once; they know no equality but identity."""
    return list({id(part.values): part.values for part in parts}.values())


def _whole(parts: Sequence[Features]) -> Features:
    """Parts of the same values as one, in the order in which these have them, and no more of these than is named."""
    named = sorted((place, name) for part in parts for place, name in zip(part.places, part.names, strict=True))
    places, names = (tuple(each) for each in zip(*named, strict=True))
    values, width = parts[0].values, parts[0].width
    if len(places) < width:
        values = op.gather(values, op.const(np.array(places, dtype=np.int64)), axis=2)
    return Features(names, values, tuple(range(len(places))), len(places))
