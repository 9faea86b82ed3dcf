"""How the channels go together."""

from itertools import combinations

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned
from fieldloop.domain.features.columns import Columns


def cross_channel(window: Cleaned) -> list[Columns]:
    """Return the correlation of each pair of channels, named `a~b.corr`, over the steps at which both are there.

    Of the deviations from each channel's own mean; NaN where one of them does not vary at those steps.
    """
    pairs = list(combinations(range(len(window.metrics)), 2))
    first, second = (_chosen(window.deviation, [pair[side] for pair in pairs]) for side in (0, 1))
    there_first, there_second = (_chosen(window.there, [pair[side] for pair in pairs]) for side in (0, 1))
    zero = op.const(np.float64(0))
    first, second = op.where(there_second, first, zero), op.where(there_first, second, zero)
    products = [op.mul(first, second), op.mul(first, first), op.mul(second, second)]
    together, own_first, own_second = (window.total(product) for product in products)
    # the roots apart: the product of two tiny variances would be 0
    values = op.div(together, op.mul(op.sqrt(own_first), op.sqrt(own_second)))
    flat = op.squeeze(values, op.const(np.array([2])))
    return [Columns(tuple(f"{window.metrics[i]}~{window.metrics[j]}.corr" for i, j in pairs), flat)]


def _chosen(values: Var, channels: list[int]) -> Var:
    return op.gather(values, op.const(np.array(channels, dtype=np.int64)), axis=1)
