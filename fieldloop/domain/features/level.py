"""Where the values lie: the last step's value, mean, least, greatest, and root mean square."""

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned
from fieldloop.domain.features.columns import Columns, per_channel


def level(window: Cleaned) -> list[Columns]:
    """Return `last`, `mean`, `min`, `max` and `rms`; the mean square is the mean's square and the variance."""
    rms = op.sqrt(op.add(op.mul(window.mean, window.mean), window.variance))
    features = {"last": window.last, "mean": window.mean, "min": window.lowest, "max": window.highest, "rms": rms}
    return per_channel(window.metrics, features)
