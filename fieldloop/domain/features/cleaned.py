"""A masked window as the families see it: what several of them need is computed once."""

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Var

_TIME = 0
SHARES: Final = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


class Cleaned:
    """A window with time first, [T, N, C] float64, and the sums that families share.

    Time first, because then a sum over time adds whole [N, C] planes one after the other: each element sees the same
    additions in the same order whatever N is. A sum along the last axis would be cut up by the CPU's vector width and
    the memory address.
    """

    def __init__(
        self,
        masked: Var,
        metrics: Sequence[str],
        length: int,
        clock: Var | None = None,
        ordered: Var | None = None,
        there: Var | None = None,
    ) -> None:
        """Take the masked window.

        Args:
            masked: [N, C, T] float32, NaN where missing.
            metrics: [C] names of the channels.
            length: T.
            clock: [N] float32, seconds since Monday 00:00 UTC at which the last step begins; None where it is not read.
            ordered: [N, C, T] float32, the values in ascending order, anything behind them; None where nobody sorted.
            there: [N, C, T] bool, where a value is, as the masks know it; None in batches, which have no masks before
                them. There it is the values that cost, for one window the nodes.
        """
        self.metrics = tuple(metrics)
        self.length = length
        self.clock = clock
        self.ordered = ordered
        self.many = there is None
        self.steps = op.transpose(masked, perm=[2, 0, 1])
        self._there = there

    @cached_property
    def there(self) -> Var:
        """[T, N, C] bool, false where missing. A NaN is not even equal to itself."""
        if self._there is None:
            return op.equal(self.steps, self.steps)
        return op.transpose(self._there, perm=[2, 0, 1])

    @cached_property
    def weight(self) -> Var:
        """[T, N, C] 1, 0 where missing."""
        return op.cast(self.there, to=np.float64)

    @cached_property
    def zeroed(self) -> Var:
        """[T, N, C] values, 0 where missing: ThresholdedRelu keeps what is above minus infinity, as no NaN is."""
        return op.cast(op.thresholded_relu(self.steps, alpha=-np.inf), to=np.float64)

    @cached_property
    def count(self) -> Var:
        """[N, C] values that are there."""
        return _sum(self.weight)

    @cached_property
    def counted(self) -> Var:
        """[N, C] int64, values that are there."""
        return op.cast(self.count, to=np.int64)

    @cached_property
    def moments(self) -> tuple[Var, Var]:
        """[N, C] twice: sums of the steps at which a value is there, counted from the middle, and of their squares.

        Halves and quarters below 2^53 add up exactly in any order, so that batches may leave it to a matrix product.
        """
        steps = middled(self.length)
        if not self.many:
            weighted = op.mul(op.const(steps[:, None, None]), self.weight)
            return self.total(weighted), self.total(op.mul(op.const(steps[:, None, None]), weighted))
        flat = op.reshape(self.weight, op.const(np.array([self.length, -1], dtype=np.int64)))
        sums = op.matmul(op.const(np.stack([steps, steps**2])), flat)
        both = op.reshape(sums, op.const(np.array([2, -1, len(self.metrics)], dtype=np.int64)))
        first, second = (op.gather(both, op.const(np.int64(power)), axis=0) for power in range(2))
        return first, second

    @cached_property
    def mean(self) -> Var:
        """[N, C] mean of the values, NaN where there is none."""
        return op.div(self.total(self.zeroed), self.count)

    @cached_property
    def deviation(self) -> Var:
        """[T, N, C] distance from the mean, 0 where missing; NaN where there is none."""
        return op.mul(op.sub(self.zeroed, self.mean), self.weight)

    @cached_property
    def squares(self) -> Var:
        """[T, N, C] squared distance from the mean."""
        return op.mul(self.deviation, self.deviation)

    @cached_property
    def sum_of_squares(self) -> Var:
        """[N, C] sum of squared distances from the mean."""
        return self.total(self.squares)

    @cached_property
    def variance(self) -> Var:
        """[N, C] variance of the population."""
        return op.div(self.sum_of_squares, self.count)

    @cached_property
    def lowest(self) -> Var:
        """[N, C] least value, NaN where there is none."""
        if self.ordered is None:
            return op.reduce_min(self._filled, axes=[_TIME], keepdims=0)
        return self._bound(0)

    @cached_property
    def highest(self) -> Var:
        """[N, C] greatest value, NaN where there is none."""
        if self.ordered is None:
            return op.reduce_max(self._filled, axes=[_TIME], keepdims=0)
        return self._bound(len(SHARES) - 1)

    @cached_property
    def quantiles(self) -> Var:
        """[N, C, Q] a quantile for each of `SHARES`, NaN where there is no value; of sorted windows alone.

        Interpolated between the two nearest values (Hyndman and Fan's type 7, NumPy's default). Where to find them and
        how to weigh them depends on the count alone: two tables, since nodes cost time at the edge. Without values both
        are the last one, whatever that is, weighed with NaN.
        """
        if self.ordered is None:
            raise ValueError("quantiles need sorted windows")
        places, weights = _interpolation(self.length)
        found = op.gather_elements(self.ordered, op.gather(op.const(places), self.counted, axis=0), axis=2)
        weighed = op.mul(op.cast(found, to=np.float64), op.gather(op.const(weights), self.counted, axis=0))
        low, high = op.split(weighed, outputs_count=2, axis=2)
        return op.add(low, high)

    @cached_property
    def last(self) -> Var:
        """[N, C] value of the last step, NaN where missing."""
        return self.step(self.length - 1)

    @cached_property
    def difference(self) -> Var:
        """[T-1, N, C] each step less the one before, NaN where either is missing."""
        values = op.cast(self.steps, to=np.float64)
        return op.sub(later(values, 1), earlier(values, 1))

    @cached_property
    def lone(self) -> Var:
        """[T-1, N, C] bool, true where a step or the one before is missing."""
        return op.isnan(self.difference)

    @cached_property
    def pairs(self) -> Var:
        """[N, C] neighbouring steps that are both there."""
        return self.total(op.cast(op.not_(self.lone), to=np.float64))

    def step(self, index: int) -> Var:
        """Return [N, C], the values of one step."""
        return op.cast(op.gather(self.steps, op.const(np.int64(index)), axis=_TIME), to=np.float64)

    def total(self, values: Var, width: int | None = None) -> Var:
        """Return [N, W], the sum over time of [T, N, W], added in the order of the steps; W is C unless it is given.

        A single element a step would be summed as one vector, in another order: a lone column is summed twice.
        """
        if (width or len(self.metrics)) > 1:
            return _sum(values)
        return op.gather(_sum(op.concat([values, values], axis=2)), op.const(np.array([0], dtype=np.int64)), axis=1)

    @cached_property
    def _filled(self) -> Var:
        """[T, N, C] the values, their mean, which lies between them, where missing; NaN where there is none."""
        return op.where(self.there, self.zeroed, self.mean)

    def _bound(self, share: int) -> Var:
        return op.gather(self.quantiles, op.const(np.int64(share)), axis=2)


def middled(length: int) -> NDArray[np.float64]:
    """Return [T], the steps counted from the middle of the window."""
    return np.arange(length, dtype=np.float64) - (length - 1) / 2


def sort(masked: Var, there: Var, length: int) -> Var:
    """Return the window [N, C, T] with each channel's values in ascending order, infinity in place of NaN behind them.

    Of one window; many are sorted faster by NumPy.
    """
    filled = op.where(there, masked, op.const(np.float32(np.inf)))
    return op.top_k(filled, op.const(np.array([length], dtype=np.int64)), largest=0)[0]


def later(values: Var, lag: int) -> Var:
    """Return all steps but the first `lag`."""
    return between(values, lag, np.iinfo(np.int64).max)  # for ONNX's Slice the end of an axis, whatever its length


def earlier(values: Var, lag: int) -> Var:
    """Return all steps but the last `lag`."""
    return between(values, 0, -lag)


def number(value: float) -> Var:
    """Return a float64 constant."""
    return op.const(np.float64(value))


def between(values: Var, start: int, stop: int) -> Var:
    """Return the steps from `start` to before `stop`."""
    return op.slice(values, *(op.const(np.array([bound], dtype=np.int64)) for bound in (start, stop, _TIME)))


def _interpolation(length: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each count of values, 0 to T, the places of the lower and upper neighbours and their weights.

    Returns:
        Both [T + 1, 2 * Q]: of all lower neighbours, then of all upper ones.
    """
    place = np.arange(-1, length)[:, None] * np.array(list(SHARES.values()))
    below = np.floor(place)
    places = np.hstack([below, np.ceil(place)]).astype(np.int64)
    weights = np.hstack([1 - (place - below), place - below])
    places[0], weights[0] = length - 1, np.nan
    return places, weights


def _sum(values: Var) -> Var:
    return op.reduce_sum(values, op.const(np.array([_TIME], dtype=np.int64)), keepdims=0)
