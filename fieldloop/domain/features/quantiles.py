"""Order statistics, interpolated between the two nearest values (Hyndman and Fan's type 7, NumPy's default)."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned, number
from fieldloop.domain.features.columns import Columns, names

SHARES: Final = {"q10": 0.10, "q25": 0.25, "median": 0.50, "q75": 0.75, "q90": 0.90}


def quantiles(window: Cleaned) -> list[Columns]:
    """Return `q10`, `q25`, `median`, `q75` and `q90`: one look-up for all of them, since nodes cost time at the edge.

    Without values the place before the first one is read, which wraps round to the last: what fills the gaps.
    """
    last = op.unsqueeze(op.sub(window.count, number(1.0)), op.const(np.array([2], dtype=np.int64)))
    place = op.mul(last, op.const(np.array(list(SHARES.values()))))  # [N, C, Q]
    below = op.floor(place)
    both = op.cast(op.concat([below, op.ceil(place)], axis=2), to=np.int64)
    found = op.cast(op.gather_elements(window.ordered, both, axis=2), to=np.float64)
    low, high = op.split(found, outputs_count=2, axis=2)
    values = op.add(low, op.mul(op.sub(high, low), op.sub(place, below)))
    return [Columns(names(window.metrics, tuple(SHARES)), _beside(values, len(window.metrics) * len(SHARES)))]


def _beside(values: Var, width: int) -> Var:
    """[N, C, Q] as [N, Q * C], a quantile's channels side by side."""
    return op.reshape(op.transpose(values, perm=[0, 2, 1]), op.const(np.array([-1, width], dtype=np.int64)))
