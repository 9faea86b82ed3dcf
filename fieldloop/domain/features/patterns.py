"""Whether the last stretch of the window takes a course that none before it took."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.blocks import FIRST, by_block, part, runs
from fieldloop.domain.features.cleaned import Cleaned, number
from fieldloop.domain.features.columns import Features, per_channel

COURSE: Final = 12  # blocks of a course
BLOCKS: Final = 80  # of a window that has as many steps, at least
RECALL: Final = 1_024  # steps that are compared, of a longer window the last: cost grows with the square of the blocks
MOST: Final = 1e6  # times; also where all others are alike, so that any change is far
_LEAST: Final = 1e-60  # of a squared distance
_LAST = 2  # axis of time in a window, [N, C, T]


def patterns(window: Cleaned) -> list[Features]:
    """Return `oddity`; NaN where the last course misses a block, or no two before it can be compared.

    A course is the means of twelve blocks in turn, a block at most an eightieth of the window. `oddity`: how many times
    as far the last course is from the nearest before it as any of these is from its own nearest; 0 up to once. Those
    that share a block are not compared. A course so far from all others is a discord (Keogh, Lin and Fu, 2005); by its
    plain distance, so that a new level is odd as well.
    """
    size = blocks(window.length)
    apart = _distances(_means(window), size)
    before = size - 2 * COURSE + 1  # courses that share no block with the last
    place = np.arange(before)
    far = op.const((np.abs(place[:, None] - place) >= COURSE)[:, :, None, None])
    last = op.gather(apart, op.const(np.int64(size - COURSE)), axis=FIRST)
    others = op.where(far, part(apart, 0, before, (0, 1)), number(np.inf))
    nearest, each = (_least(distances) for distances in (part(last, 0, before), others))
    most = op.reduce_max(op.where(op.less(each, number(np.inf)), each, number(-1.0)), axes=[FIRST], keepdims=0)
    times = op.min([op.sqrt(op.div(nearest, op.max([most, number(_LEAST)]))), number(MOST)])
    oddity = op.where(op.greater(nearest, most), times, number(0.0))
    known = op.and_(op.less(nearest, number(np.inf)), op.less_or_equal(number(0.0), most))
    answer = op.unsqueeze(op.where(known, oddity, number(np.nan)), op.const(np.array([_LAST])))
    return per_channel({"oddity": answer})


def blocks(length: int) -> int:
    """Return into how many blocks a window of so many steps is cut; what is over lies before the first."""
    return min(length, RECALL) // _steps(length)


def _steps(length: int) -> int:
    """Of a block."""
    return max(1, min(length, RECALL) // BLOCKS)


def _means(window: Cleaned) -> Var:
    """[B, N, C] means of the blocks, NaN where one has no value."""
    cut = (window.length, blocks(window.length), _steps(window.length))
    sums, counts = (by_block(values, *cut) for values in (window.zeroed, window.weight))
    return op.div(sums, counts)


def _distances(means: Var, size: int) -> Var:
    """[P, P, N, C] squared distances of all courses from one another, infinite where a block is missing."""
    apart = op.sub(op.unsqueeze(means, op.const(np.array([1]))), op.unsqueeze(means, op.const(np.array([0]))))
    sums = runs(op.mul(apart, apart), size, COURSE, (0, 1))
    return op.where(op.isnan(sums), number(np.inf), sums)


def _least(distances: Var) -> Var:
    return op.reduce_min(distances, axes=[FIRST], keepdims=0)
