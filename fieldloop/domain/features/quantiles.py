"""Order statistics."""

import numpy as np
import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import SHARES, Cleaned
from fieldloop.domain.features.columns import Columns, names


def quantiles(window: Cleaned) -> list[Columns]:
    """Return `q10`, `q25`, `median`, `q75` and `q90`, a quantile's channels side by side."""
    inner = tuple(SHARES)[1:-1]
    bounds = (op.const(np.array([bound], dtype=np.int64)) for bound in (1, 1 + len(inner), 2))
    values = op.transpose(op.slice(window.quantiles, *bounds), perm=[0, 2, 1])
    width = len(window.metrics) * len(inner)
    return [Columns(names(window.metrics, inner), op.reshape(values, op.const(np.array([-1, width], dtype=np.int64))))]
