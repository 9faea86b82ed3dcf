"""Where the values lie: the last, the mean, the least, the greatest and the root mean square; of one step its value."""

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned
from fieldloop.domain.features.columns import Features, per_channel


def level(window: Cleaned) -> list[Features]:
    """Return `last`, `mean`, `min`, `max` and `rms`; the mean square is the mean's square and the variance.

    Of windows of one step `last` alone: the others would say it again, and a penalty would count it five times.
    """
    if window.length == 1:
        return per_channel({"last": window.last})
    rms = op.sqrt(op.add(op.mul(window.mean, window.mean), window.variance))
    return [
        *per_channel({"last": window.last, "mean": window.mean}),
        *window.ranked("min", "max"),
        *per_channel({"rms": rms}),
    ]
