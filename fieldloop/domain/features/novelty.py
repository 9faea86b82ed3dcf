"""Whether the last value is one that the window has not seen before: beyond all others, or in a hole between them."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import SHARES, Cleaned, number
from fieldloop.domain.features.columns import Features, per_channel

MOST: Final = 1e6  # widths, or distances; also where the others do not differ, so that any change is far
_LEAST_WIDTH: Final = 1e-30
_VALUES: Final = 2  # axis of a sorted window [N, C, T]


def novelty(window: Cleaned) -> list[Features]:
    """Return `excess` and `gap`; NaN where the last value is missing, or all before it are.

    `excess`: how far the last value lies beyond all before it, in widths of the window's middle 80 %; 0 within them.
    `gap`: how many times as far it is from the nearest of them as any of these is from its own nearest; 0 up to once.
    """
    highest, lowest = window.highest_before, window.lowest_before
    beyond = op.add(op.relu(op.sub(window.last, highest)), op.relu(op.sub(lowest, window.last)))
    width = op.sub(_quantile(window, "q90"), _quantile(window, "q10"))
    known = op.abs(op.mul(op.add(op.add(highest, lowest), window.last), number(0.0)))  # of infinities and NaN, NaN
    features = {"excess": _times(beyond, width), "gap": _gap(window)}
    return per_channel({name: op.add(values, known) for name, values in features.items()})


def _gap(window: Cleaned) -> Var:
    """[N, C, 1]. Where the last value is the loneliest of all, only the second loneliest is another's distance."""
    nearest = window.nearest_before
    most, next_most = op.split(_loneliest(window), outputs_count=2, axis=_VALUES)
    alone = op.and_(op.equal(nearest, most), op.less(next_most, most))
    return op.where(alone, _times(most, next_most), number(0.0))


def _loneliest(window: Cleaned) -> Var:
    """[N, C, 2] the two largest of the distances that each value has from its nearest; -1 where it has none."""
    if window.ordered is None:
        raise ValueError("distances need sorted windows")
    values = op.cast(window.ordered, to=np.float64)
    bounds = ((1, np.iinfo(np.int64).max), (0, -1))
    upper, lower = (op.slice(values, *(op.const(np.array([at])) for at in (*bound, _VALUES))) for bound in bounds)
    place = op.const(np.arange(1, window.length, dtype=np.int64))
    both = op.less(place, window.counted)
    gaps = op.where(both, op.abs(op.sub(upper, lower)), number(np.inf))
    sides = (
        op.pad(gaps, op.const(np.array(pads)), number(np.inf)) for pads in ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1])
    )
    nearest = op.min([*sides])
    lonely = op.where(op.less(nearest, number(np.inf)), nearest, number(-1.0))
    return op.top_k(lonely, op.const(np.array([2], dtype=np.int64)), axis=_VALUES)[0]


def _times(size: Var, of: Var) -> Var:
    return op.min([op.div(size, op.max([of, number(_LEAST_WIDTH)])), number(MOST)])


def _quantile(window: Cleaned, share: str) -> Var:
    return op.gather(window.quantiles, op.const(np.array([list(SHARES).index(share)])), axis=2)
