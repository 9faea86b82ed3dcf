"""Whether the last stretch of the window takes a course that none before it took."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned, between, number
from fieldloop.domain.features.columns import Features, per_channel

COURSE: Final = 8  # blocks of a course, a power of two
BLOCKS: Final = 80  # of a window that has as many steps, at least
MOST: Final = 1e6  # times; also where all others are alike, so that any change is far
_LEAST: Final = 1e-60  # of a squared distance
_FIRST = 0  # axis of blocks and courses
_LAST = 2  # axis of time in a window, [N, C, T]


def patterns(window: Cleaned) -> list[Features]:
    """Return `oddity`; NaN where the last course misses a block, or no two before it can be compared.

    A course is the means of eight blocks in turn, a block at most an eightieth of the window. `oddity`: how many times
    as far the last course is from the nearest before it as any of these is from its own nearest; 0 up to once. Those
    that share a block are not compared. A course so far from all others is a discord (Keogh, Lin and Fu, 2005); by its
    plain distance, so that a new level is odd as well.
    """
    apart = _distances(_blocks(window))
    before = blocks(window.length) - 2 * COURSE + 1  # courses that share no block with the last
    place = np.arange(before)
    far = op.const((np.abs(place[:, None] - place) >= COURSE)[:, :, None, None])
    last = op.gather(apart, op.const(np.int64(blocks(window.length) - COURSE)), axis=_FIRST)
    others = op.where(far, _square(apart, 0, before), number(np.inf))
    nearest, each = (_least(distances) for distances in (_stretch(last, 0, before), others))
    most = op.reduce_max(op.where(op.less(each, number(np.inf)), each, number(-1.0)), axes=[_FIRST], keepdims=0)
    times = op.min([op.sqrt(op.div(nearest, op.max([most, number(_LEAST)]))), number(MOST)])
    oddity = op.where(op.greater(nearest, most), times, number(0.0))
    known = op.and_(op.less(nearest, number(np.inf)), op.less_or_equal(number(0.0), most))
    answer = op.unsqueeze(op.where(known, oddity, number(np.nan)), op.const(np.array([_LAST])))
    return per_channel({"oddity": answer})


def blocks(length: int) -> int:
    """Return into how many blocks a window of so many steps is cut; what is over lies before the first."""
    return length // _steps(length)


def _steps(length: int) -> int:
    """Of a block."""
    return max(1, length // BLOCKS)


def _blocks(window: Cleaned) -> Var:
    """[B, N, C] means of the blocks, NaN where one has no value.

    Their steps come first, so that they are added in turn whatever N and C are: there are always several blocks.
    """
    sums, counts = (_by_block(values, window.length) for values in (window.zeroed, window.weight))
    return op.div(sums, counts)


def _by_block(values: Var, length: int) -> Var:
    """[B, N, C] sums over the steps of each block of [N, C, T]."""
    steps, number_of = _steps(length), blocks(length)
    kept = op.transpose(between(values, length - steps * number_of, length), perm=[2, 0, 1])
    shape = op.concat([op.const(np.array([number_of, steps])), _stretch(op.shape(values), 0, 2)], axis=0)
    apart = op.transpose(op.reshape(kept, shape), perm=[1, 0, 2, 3])
    return op.reduce_sum(apart, op.const(np.array([_FIRST])), keepdims=0)


def _distances(means: Var) -> Var:
    """[P, P, N, C] squared distances of all courses from one another, infinite where a block is missing."""
    apart = op.sub(op.unsqueeze(means, op.const(np.array([1]))), op.unsqueeze(means, op.const(np.array([0]))))
    sums, blocks_of = op.mul(apart, apart), 1
    while blocks_of < COURSE:
        sums = op.add(_square(sums, 0, -blocks_of), _square(sums, blocks_of, np.iinfo(np.int64).max))
        blocks_of *= 2
    return op.where(op.isnan(sums), number(np.inf), sums)


def _stretch(values: Var, start: int, stop: int) -> Var:
    """A stretch of the first axis."""
    return op.slice(values, *(op.const(np.array([bound])) for bound in (start, stop, _FIRST)))


def _square(values: Var, start: int, stop: int) -> Var:
    """The same stretch of the first two axes."""
    first, behind = (op.const(np.array([bound, bound])) for bound in (start, stop))
    return op.slice(values, first, behind, op.const(np.array([0, 1])))


def _least(distances: Var) -> Var:
    return op.reduce_min(distances, axes=[_FIRST], keepdims=0)
