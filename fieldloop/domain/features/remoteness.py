"""How far the last value is from all that the window has seen before it."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned, earlier, number
from fieldloop.domain.features.columns import Features, per_channel

MOST: Final = 1e6  # ranges; also where the others do not differ, so that any change is far
_LEAST_RANGE: Final = 1e-30
_TIME = 2  # axis of a window [N, C, T]


def remoteness(window: Cleaned) -> list[Features]:
    """Return `remote`: how far the last value is from the nearest before it, as a share of the range of these.

    A value beyond all others is as remote as one in a hole between them. NaN where it is missing, or all before it are.
    """
    before, there = (earlier(values, 1) for values in (window.steps, window.there))
    apart = op.abs(op.sub(_wide(before), window.last))
    nearest = op.reduce_min(op.where(there, apart, number(np.inf)), axes=[_TIME])
    highest = op.reduce_max(op.where(there, before, op.const(np.float32(-np.inf))), axes=[_TIME])
    lowest = op.reduce_min(op.where(there, before, op.const(np.float32(np.inf))), axes=[_TIME])
    extent = op.sub(_wide(highest), _wide(lowest))
    known = op.mul(op.add(extent, window.last), number(0.0))  # of infinities and NaN, NaN
    share = op.min([op.div(nearest, op.max([extent, number(_LEAST_RANGE)])), number(MOST)])
    return per_channel({"remote": op.add(share, known)})


def _wide(values: Var) -> Var:
    return op.cast(values, to=np.float64)
