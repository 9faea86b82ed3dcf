"""How often the values cross their mean, and how often they turn."""

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned, earlier, later, number
from fieldloop.domain.features.columns import Features, per_channel


def crossings(window: Cleaned) -> list[Features]:
    """Return `mean_crossings` and `turns`, as shares of the neighbouring steps that are both there.

    A crossing has its two steps strictly on either side of the mean, a turn its two changes of opposite sign.
    """
    crossed = window.total(_opposite(window.deviation), window.length - 1)
    turned = window.total(_opposite(window.difference), window.length - 2)
    features = {"mean_crossings": crossed, "turns": turned}
    return per_channel({name: op.div(number, window.pairs) for name, number in features.items()})


def _opposite(values: Var) -> Var:
    """1 where a step and the one before have opposite signs, else 0; a NaN has no sign."""
    return op.cast(op.less(op.mul(later(values, 1), earlier(values, 1)), number(0.0)), to=np.float64)
