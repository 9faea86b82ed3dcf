"""Where the values go: the slope of the least-squares line, and the last change."""

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned, middled
from fieldloop.domain.features.columns import Features, per_channel


def trend(window: Cleaned) -> list[Features]:
    """Return `slope` (per step, NaN for fewer than two values) and `delta` (last step less the one before).

    With t the steps counted from the middle, of which n are there, the slope is n Σt(x - mean) / (n Σt² - (Σt)²): the
    deviations of x add up to nothing, so t needs no mean of its own. The divisor is exact.
    """
    rise = window.weighed(window.deviation, middled(window.length))
    slope = op.div(op.mul(rise, window.count), window.run)
    delta = op.sub(window.last, window.before_last)
    return per_channel({"slope": slope, "delta": delta})
