"""How the values change from step to step, over the neighbouring steps that are both there."""

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned, number
from fieldloop.domain.features.columns import Features, per_channel


def differences(window: Cleaned) -> list[Features]:
    """Return `diff_mean` and `diff_max` of the absolute changes, and their root mean square `diff_rms`."""
    change = op.where(window.lone, number(0.0), op.abs(window.difference))
    steps = window.length - 1
    mean = op.div(window.total(change, steps), window.pairs)
    rms = op.sqrt(op.div(window.total(op.mul(change, change), steps), window.pairs))
    none = op.equal(window.pairs, number(0.0))
    largest = op.where(none, number(float("nan")), op.reduce_max(change, axes=[2]))
    return per_channel({"diff_mean": mean, "diff_max": largest, "diff_rms": rms})
