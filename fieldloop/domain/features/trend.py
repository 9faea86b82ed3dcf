"""Where the values go: the slope of the least-squares line, and the last change."""

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned


def trend(window: Cleaned) -> dict[str, Var]:
    """Return `slope` (per step, NaN for fewer than two values) and `delta` (last step less the one before), [N, C]."""
    steps = op.const(np.arange(window.length, dtype=np.float64)[:, None, None])
    middle = op.div(window.total(op.mul(window.weight, steps)), window.count)
    distance = window.where_missing(0.0, op.sub(steps, middle))
    rise = window.total(op.mul(distance, window.deviation))
    slope = op.div(rise, window.total(op.mul(distance, distance)))
    return {"slope": slope, "delta": op.sub(window.last, window.step(window.length - 2))}
