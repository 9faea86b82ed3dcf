"""A masked window as the families see it: what several of them need is computed once."""

from functools import cached_property

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

_TIME = 0


class Cleaned:
    """A window with time first, [T, N, C] float64, and the sums that families share.

    Time first, because then a sum over time adds whole [N, C] planes one after the other: each element sees the same
    additions in the same order whatever N is. A sum along the last axis would be cut up by the CPU's vector width and
    the memory address.
    """

    def __init__(self, masked: Var, channels: int, length: int) -> None:
        """Take the masked window.

        Args:
            masked: [N, C, T] float32, NaN where missing.
            channels: C.
            length: T.
        """
        self.channels = channels
        self.length = length
        self.values = op.cast(op.transpose(masked, perm=[2, 0, 1]), to=np.float64)

    @cached_property
    def missing(self) -> Var:
        """[T, N, C] bool."""
        return op.isnan(self.values)

    @cached_property
    def zeroed(self) -> Var:
        """[T, N, C] values, 0 where missing."""
        return self.where_missing(0.0, self.values)

    @cached_property
    def weight(self) -> Var:
        """[T, N, C] 1, 0 where missing."""
        return self.where_missing(0.0, number(1.0))

    @cached_property
    def count(self) -> Var:
        """[N, C] values that are there."""
        return self.total(self.weight)

    @cached_property
    def mean(self) -> Var:
        """[N, C] mean of the values, NaN where there is none."""
        return op.div(self.total(self.zeroed), self.count)

    @cached_property
    def deviation(self) -> Var:
        """[T, N, C] distance from the mean, 0 where missing."""
        return self.where_missing(0.0, op.sub(self.values, self.mean))

    @cached_property
    def lowest(self) -> Var:
        """[N, C] least value, NaN where there is none."""
        return self._of_some(op.reduce_min(self.where_missing(np.inf, self.values), axes=[_TIME], keepdims=0))

    @cached_property
    def highest(self) -> Var:
        """[N, C] greatest value, NaN where there is none."""
        return self._of_some(op.reduce_max(self.where_missing(-np.inf, self.values), axes=[_TIME], keepdims=0))

    @cached_property
    def last(self) -> Var:
        """[N, C] value of the last step, NaN where missing."""
        return self.step(self.length - 1)

    def step(self, index: int) -> Var:
        """Return [N, C], the values of one step."""
        return op.gather(self.values, op.const(np.int64(index)), axis=_TIME)

    def where_missing(self, instead: float, values: Var) -> Var:
        """Return [T, N, C], the values with `instead` where the window has none."""
        return op.where(self.missing, number(instead), values)

    def total(self, values: Var) -> Var:
        """Return [N, C], the sum over time of [T, N, C], added in the order of the steps.

        A single element a step would be summed as one vector, in another order: a lone channel is summed twice.
        """
        axes = op.const(np.array([_TIME], dtype=np.int64))
        if self.channels > 1:
            return op.reduce_sum(values, axes, keepdims=0)
        both = op.reduce_sum(op.concat([values, values], axis=2), axes, keepdims=0)
        return op.gather(both, op.const(np.array([0], dtype=np.int64)), axis=1)

    @cached_property
    def _none(self) -> Var:
        return op.equal(self.count, number(0.0))

    def _of_some(self, values: Var) -> Var:
        return op.where(self._none, number(np.nan), values)


def number(value: float) -> Var:
    """Return a float64 constant."""
    return op.const(np.float64(value))
