"""How far the values lie apart: standard deviation and range."""

import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned


def spread(window: Cleaned) -> dict[str, Var]:
    """Return `std` (of the population) and `range`, [N, C] float64 each."""
    squares = window.total(op.mul(window.deviation, window.deviation))
    return {"std": op.sqrt(op.div(squares, window.count)), "range": op.sub(window.highest, window.lowest)}
