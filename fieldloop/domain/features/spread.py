"""How far the values lie apart: standard deviation and range."""

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned
from fieldloop.domain.features.columns import Features, per_channel


def spread(window: Cleaned) -> list[Features]:
    """Return `std` (of the population) and `range`."""
    return [*per_channel({"std": op.sqrt(window.variance)}), *window.ranked("range")]
