"""Whether the last value is one that the window has not seen before."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import SHARES, Cleaned, earlier, number
from fieldloop.domain.features.columns import Columns, per_channel

MOST: Final = 1e6  # widths; also where the others do not differ, so that any change is far
_LEAST_WIDTH: Final = 1e-30


def novelty(window: Cleaned) -> list[Columns]:
    """Return `excess`: how far the last value lies beyond all before it, in widths of the window's middle 80 %.

    0 within them; NaN where the last value is missing, or all before it are.
    """
    before, there = earlier(window.steps, 1), earlier(window.there, 1)
    highest = _wide(op.reduce_max(op.where(there, before, op.const(np.float32(-np.inf))), axes=[0], keepdims=0))
    lowest = _wide(op.reduce_min(op.where(there, before, op.const(np.float32(np.inf))), axes=[0], keepdims=0))
    beyond = op.add(op.relu(op.sub(window.last, highest)), op.relu(op.sub(lowest, window.last)))
    width = op.sub(_quantile(window, "q90"), _quantile(window, "q10"))
    widths = op.min([op.div(beyond, op.max([width, number(_LEAST_WIDTH)])), number(MOST)])
    known = op.add(op.add(highest, lowest), window.last)  # minus and plus infinity are no number together
    return per_channel(window.metrics, {"excess": op.add(widths, op.mul(known, number(0.0)))})


def _wide(values: Var) -> Var:
    return op.cast(values, to=np.float64)


def _quantile(window: Cleaned, share: str) -> Var:
    return op.gather(window.quantiles, op.const(np.int64(list(SHARES).index(share))), axis=2)
