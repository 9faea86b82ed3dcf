"""What of a window is taken for missing: values out of range and runs of equal values, inside the graph."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Var

from fieldloop.domain.recipe import InputChannel

_TIME = 2  # axis of time in [N, C, T]
_END = np.iinfo(np.int64).max  # for ONNX's Slice the end of an axis, whatever its length


class Masked(NamedTuple):
    """A window without what is out of range, infinite or frozen.

    Attributes:
        steps: [N, C, T] float32, NaN where missing.
        values: the same, with anything where missing: choosing costs, so what fills gaps otherwise begins here.
        there: [N, C, T] bool, where a value is left.
    """

    steps: Var
    values: Var
    there: Var


def mask(window: Var, channels: Sequence[InputChannel]) -> Masked:
    """Return the window without what is out of range, infinite or frozen.

    Args:
        window: [N, C, T] float32.
        channels: [C] ranges (inclusive, compared in float32) and lengths of frozen runs.
    """
    if all(np.isinf(channel.valid).all() and not channel.frozen_steps for channel in channels):
        masked = op.add(window, op.mul(window, op.const(np.float32(0))))  # 0 times infinity is NaN
        return Masked(masked, masked, op.equal(masked, masked))  # a NaN is not even equal to itself
    lowest = _per_channel([channel.valid[0] for channel in channels])
    highest = _per_channel([channel.valid[1] for channel in channels])
    good = op.and_(op.greater_or_equal(window, lowest), op.less_or_equal(window, highest))
    runs = sorted({channel.frozen_steps for channel in channels if channel.frozen_steps})
    repeats = _repeats(window)
    for steps in runs:
        concerned = np.array([channel.frozen_steps == steps for channel in channels])
        good = op.and_(good, _moving(repeats, steps, concerned))
    return Masked(op.where(good, window, op.const(np.float32(np.nan))), window, good)


def _per_channel(values: Sequence[float]) -> Var:
    """One finite value a channel as [C, 1], to stand beside [N, C, T]."""
    most = float(np.finfo(np.float32).max)
    return op.const(np.clip(values, -most, most).astype(np.float32)[:, None])


def _repeats(window: Var) -> Var:
    """[N, C, T-1] float32, 1 where the next step has the same value, else 0."""
    return op.cast(op.equal(_steps(window, 0, -1), _steps(window, 1, _END)), to=np.float32)


def _moving(repeats: Var, steps: int, concerned: NDArray[np.bool_]) -> Var:
    """[N, C, T] bool, false in runs of at least `steps` equal values of the channels concerned.

    A frozen run begins where the mean of `steps - 1` repetitions is 1, which is exact, and covers the next `steps`
    values: two sliding windows. No mean reaches 2, which is the limit of the other channels.
    """
    repeated = op.average_pool(repeats, kernel_shape=[steps - 1])
    frozen, _ = op.max_pool(repeated, kernel_shape=[steps], pads=[steps - 1, steps - 1])
    return op.less(frozen, op.const(np.where(concerned, 1, 2).astype(np.float32)[:, None]))


def _steps(window: Var, start: int, stop: int) -> Var:
    return op.slice(window, *(op.const(np.array([bound], dtype=np.int64)) for bound in (start, stop, _TIME)))
