"""Whether the last stretch of the window is wilder than all stretches before it, or calmer."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.blocks import FIRST, by_block, part, runs
from fieldloop.domain.features.cleaned import Cleaned, number
from fieldloop.domain.features.columns import Features, per_channel

STRETCH: Final = 24  # blocks
BLOCKS: Final = 336  # of a window that has as many steps, at least: fourteen stretches
MOST: Final = 1e6  # ranges
_LEAST_SHARE: Final = 0.03  # of the greatest spread: the least range, so that rounding is no unrest
_LEAST_RANGE: Final = 1e-30


def unrest(window: Cleaned) -> list[Features]:
    """Return `unrest`; NaN where the last stretch misses a block, or all misses one that shares none with it.

    A stretch is a fourteenth of the window, in 24 blocks, and one begins with each block. `unrest`: how far the
    standard deviation of the last lies beyond those of all before it, as a share of their range; 0 within them.
    """
    size = window.length // _steps(window.length)
    spreads = _spreads(window, size)
    last, before = (part(spreads, *bounds) for bounds in ((size - STRETCH, size), (0, size - STRETCH)))
    apart = part(spreads, 0, size - 2 * STRETCH + 1)
    there = op.not_(op.isnan(before))
    highest = op.reduce_max(op.where(there, before, number(-np.inf)), axes=[FIRST])
    lowest = op.reduce_min(op.where(there, before, number(np.inf)), axes=[FIRST])
    extent = op.max([op.sub(highest, lowest), op.mul(highest, number(_LEAST_SHARE)), number(_LEAST_RANGE)])
    beyond = op.add(op.relu(op.sub(last, highest)), op.relu(op.sub(lowest, last)))
    share = op.min([op.div(beyond, extent), number(MOST)])
    some = op.reduce_max(op.where(op.isnan(apart), number(-np.inf), apart), axes=[FIRST])
    known = op.and_(op.less(number(-np.inf), some), op.equal(last, last))
    answer = op.where(known, share, number(np.nan))
    return per_channel({"unrest": op.transpose(answer, perm=[1, 2, 0])})


def _steps(length: int) -> int:
    """Of a block."""
    return max(1, length // BLOCKS)


def _spreads(window: Cleaned, size: int) -> Var:
    """[P, N, C] standard deviations of all stretches, NaN where one misses a block."""
    cut = (window.length, size, _steps(window.length))
    counts = by_block(window.weight, *cut)
    there = op.less(number(0.0), counts)
    sums, squares = (
        runs(op.where(there, by_block(values, *cut), number(np.nan)), size, STRETCH)
        for values in (window.deviation, window.squares)
    )
    number_of = runs(counts, size, STRETCH)
    mean = op.div(sums, number_of)
    variance = op.sub(op.div(squares, number_of), op.mul(mean, mean))
    return op.sqrt(op.where(op.less(variance, number(0.0)), number(0.0), variance))
