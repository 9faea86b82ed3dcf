"""Where the values go: the slope of the least-squares line, and the last change."""

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned, middled
from fieldloop.domain.features.columns import Columns, per_channel


def trend(window: Cleaned) -> list[Columns]:
    """Return `slope` (per step, NaN for fewer than two values) and `delta` (last step less the one before).

    With t the steps counted from the middle, of which n are there, the slope is n Σt(x - mean) / (n Σt² - (Σt)²): the
    deviations of x add up to nothing, so t needs no mean of its own. The divisor is exact.
    """
    steps = op.const(middled(window.length)[:, None, None])
    rise = window.total(op.mul(steps, window.deviation))
    first, second = window.moments
    run = op.sub(op.mul(window.count, second), op.mul(first, first))
    slope = op.div(op.mul(rise, window.count), run)
    delta = op.sub(window.last, window.step(window.length - 2))
    return per_channel(window.metrics, {"slope": slope, "delta": delta})
