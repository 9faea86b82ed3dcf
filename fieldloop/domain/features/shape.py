"""The shape of the values' distribution."""

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned, number
from fieldloop.domain.features.columns import Features, per_channel


def shape(window: Cleaned) -> list[Features]:
    """Return `skew` and `kurtosis` (excess), both of the population; NaN where nothing varies."""
    third = op.div(window.total(op.mul(window.squares, window.deviation)), window.count)
    fourth = op.div(window.total(op.mul(window.squares, window.squares)), window.count)
    square = op.mul(window.variance, window.variance)
    skew = op.div(third, op.mul(window.variance, op.sqrt(window.variance)))
    kurtosis = op.sub(op.div(fourth, square), number(3.0))
    return per_channel({"skew": skew, "kurtosis": kurtosis})
