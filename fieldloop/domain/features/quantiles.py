"""Order statistics."""

import numpy as np
import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import SHARES, Cleaned
from fieldloop.domain.features.columns import Columns


def quantiles(window: Cleaned) -> list[Columns]:
    """Return `q10`, `q25`, `median`, `q75` and `q90`, a channel's quantiles side by side."""
    inner = tuple(SHARES)[1:-1]
    bounds = (op.const(np.array([bound], dtype=np.int64)) for bound in (1, 1 + len(inner), 2))
    shape = op.const(np.array([-1, len(window.metrics) * len(inner)], dtype=np.int64))
    names = tuple(f"{metric}.{quantile}" for metric in window.metrics for quantile in inner)
    return [Columns(names, op.reshape(op.slice(window.quantiles, *bounds), shape))]
