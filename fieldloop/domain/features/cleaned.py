"""A masked window as the families see it: what several of them need is computed once."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Var

from fieldloop.domain.features.columns import Features

_TIME = 2  # axis of time
SHARES: Final = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}
RANKED: Final = (*SHARES, "range")
BOUNDS: Final = ("min", "max", "range")


class Cleaned:
    """A window, [N, C, T], and the sums that families share, in float64.

    Sums over time are matrix products: each row of one is added up step after step, whatever rows are beside it. ONNX's
    own sum along the last axis is cut up by the CPU's vector width and the memory address (docs/adr/0040).
    """

    def __init__(
        self,
        masked: Var,
        metrics: Sequence[str],
        length: int,
        clock: Var | None = None,
        ordered: Var | None = None,
        there: Var | None = None,
        sunken: Var | None = None,
    ) -> None:
        """Take the masked window.

        Args:
            masked: [N, C, T] float32, NaN where missing.
            metrics: [C] names of the channels.
            length: T.
            clock: [N] float32, seconds since Monday 00:00 UTC at which the last step begins; None where it is not read.
            ordered: [N, C, T] float32, the values in order, anything behind them: in ascending order, or of a sunken
                window in descending order; None where nobody sorted.
            there: [N, C, T] bool, where a value is, as the masks know it; None in batches, which have no masks before
                them.
            sunken: [N, C, T] float32, minus infinity where missing, if it was made for sorting.
        """
        self.metrics = tuple(metrics)
        self.length = length
        self.clock = clock
        self.ordered = ordered
        self.steps = masked
        self._there = there
        self._sunken = sunken

    @cached_property
    def there(self) -> Var:
        """[N, C, T] bool, false where missing. A NaN is not even equal to itself."""
        return op.equal(self.steps, self.steps) if self._there is None else self._there

    @cached_property
    def weight(self) -> Var:
        """[N, C, T] 1, 0 where missing."""
        return op.cast(self.there, to=np.float64)

    @cached_property
    def zeroed(self) -> Var:
        """[N, C, T] values, 0 where missing: ThresholdedRelu keeps what is above minus infinity, as no NaN is."""
        steps = self.steps if self._sunken is None else self._sunken
        return op.cast(op.thresholded_relu(steps, alpha=-np.inf), to=np.float64)

    @cached_property
    def count(self) -> Var:
        """[N, C, 1] values that are there."""
        return self._counts[0]

    @cached_property
    def counted(self) -> Var:
        """[N, C, 1] int64, values that are there."""
        return op.cast(self.count, to=np.int64)

    @cached_property
    def run(self) -> Var:
        """[N, C, 1] n Σt² - (Σt)², exact, of the n steps t at which a value is, counted from the middle."""
        return op.matmul(op.mul(*self._counts[2:]), op.const(np.array([[1.0], [-1.0]])))

    @cached_property
    def _counts(self) -> tuple[Var, Var, Var, Var]:
        """How many values are there, n, [N, C, 1]; n and of each newest step its own; n, Σt; Σt², Σt, [N, C, 2] each.

        Halves and quarters add up exactly. All at once: a product's further columns cost next to nothing, a node does.
        """
        steps, picks = middled(self.length), _picks(self.length)
        sums = np.column_stack([np.ones(self.length), picks, np.ones(self.length), steps, steps**2, steps])
        sizes = np.array([1, picks.shape[1], 2, 2], dtype=np.int64)
        count, known, first, second = op.split(
            op.matmul(self.weight, op.const(sums)), op.const(sizes), outputs_count=4, axis=2
        )
        return count, known, first, second

    @cached_property
    def mean(self) -> Var:
        """[N, C, 1] mean of the values, NaN where there is none."""
        return self._averages[0]

    @cached_property
    def deviation(self) -> Var:
        """[N, C, T] distance from the mean, 0 where missing; NaN where there is none."""
        return op.mul(op.sub(self.zeroed, self.mean), self.weight)

    @cached_property
    def squares(self) -> Var:
        """[N, C, T] squared distance from the mean."""
        return op.mul(self.deviation, self.deviation)

    @cached_property
    def sum_of_squares(self) -> Var:
        """[N, C, 1] sum of squared distances from the mean."""
        return self.total(self.squares)

    @cached_property
    def variance(self) -> Var:
        """[N, C, 1] variance of the population."""
        return op.div(self.sum_of_squares, self.count)

    def ranked(self, *names: str) -> list[Features]:
        """Return some of `RANKED`; quantiles between the bounds of sorted windows alone.

        Sorted or not, they stand together: columns have the same order in both builds of a recipe.
        """
        there, values = (BOUNDS, self._bounds) if self.ordered is None else (RANKED, self.quantiles)
        return [Features(names, values, tuple(there.index(name) for name in names), len(there))]

    @cached_property
    def _bounds(self) -> Var:
        """[N, C, 3] what `BOUNDS` names, NaN where there is no value; sums as those of sorted windows, so no -0."""
        bounds = [bound(self._filled, axes=[_TIME]) for bound in (op.reduce_min, op.reduce_max)]
        both = np.eye(len(bounds))
        return op.matmul(op.concat(bounds, axis=_TIME), op.const(np.column_stack([both, both[:, -1] - both[:, 0]])))

    @cached_property
    def quantiles(self) -> Var:
        """[N, C, Q + 1] what `RANKED` names, NaN where there is no value; of sorted windows alone.

        Interpolated between the two nearest values (Hyndman and Fan's type 7, NumPy's default). Where to find them and
        how to weigh them depends on the count alone: two tables, since nodes cost time at the edge. Without values both
        are the last one, whatever that is, weighed with NaN. Both are added, and the range is taken, by a product.
        """
        if self.ordered is None:
            raise ValueError("quantiles need sorted windows")
        places, weights = _interpolation(self.length, descending=self._sunken is not None)
        found = op.gather_elements(self.ordered, op.gather_nd(op.const(places), self.counted), axis=2)
        weighed = op.mul(op.cast(found, to=np.float64), op.gather_nd(op.const(weights), self.counted))
        both = np.vstack([np.eye(len(SHARES))] * 2)
        return op.matmul(weighed, op.const(np.column_stack([both, both[:, -1] - both[:, 0]])))

    @property
    def last(self) -> Var:
        """[N, C, 1] value of the last step, NaN where missing."""
        return self._averages[1]

    @property
    def before_last(self) -> Var:
        """[N, C, 1] value of the step before the last, NaN where missing; of two steps or more."""
        return self._averages[2]

    @cached_property
    def _averages(self) -> Sequence[Var]:
        """[N, C, 1] each: of all steps, of the last, of the one before; 0 / 0 is NaN."""
        picks = _picks(self.length)
        values = op.div(op.matmul(self.zeroed, op.const(picks)), self._counts[1])
        return op.split(values, outputs_count=picks.shape[1], axis=2)

    @cached_property
    def lowest_before(self) -> Var:
        """[N, C, 1] least value before the last step, infinite where there is none."""
        return self._bound_before(op.reduce_min, np.inf)

    @cached_property
    def highest_before(self) -> Var:
        """[N, C, 1] greatest value before the last step, minus infinity where there is none."""
        return self._bound_before(op.reduce_max, -np.inf)

    @cached_property
    def nearest_before(self) -> Var:
        """[N, C, 1] distance of the last value from the nearest before it; infinite where there is none."""
        apart = op.abs(op.sub(op.cast(earlier(self.steps, 1), to=np.float64), self.last))
        return op.reduce_min(op.where(earlier(self.there, 1), apart, number(np.inf)), axes=[_TIME])

    def _bound_before(self, reduce: Callable[..., Var], missing: float) -> Var:
        values = op.where(earlier(self.there, 1), earlier(self.steps, 1), op.const(np.float32(missing)))
        return op.cast(reduce(values, axes=[_TIME]), to=np.float64)

    @cached_property
    def difference(self) -> Var:
        """[N, C, T-1] each step less the one before, NaN where either is missing."""
        values = op.cast(self.steps, to=np.float64)
        return op.sub(later(values, 1), earlier(values, 1))

    @cached_property
    def lone(self) -> Var:
        """[N, C, T-1] bool, true where a step or the one before is missing."""
        return op.isnan(self.difference)

    @cached_property
    def pairs(self) -> Var:
        """[N, C, 1] neighbouring steps that are both there."""
        return self.total(op.cast(op.not_(self.lone), to=np.float64), self.length - 1)

    def total(self, values: Var, steps: int | None = None) -> Var:
        """Return [N, W, 1], the sum over time of [N, W, T], or of so many steps, added in their order."""
        return self.weighed(values, np.ones(self.length if steps is None else steps))

    def weighed(self, values: Var, by: NDArray[np.float64]) -> Var:
        """Return [N, W, 1], the sum over time of [N, W, S], each step times its weight, of [S]."""
        return op.matmul(values, op.const(by[:, None]))

    @cached_property
    def _filled(self) -> Var:
        """[N, C, T] the values, their mean, which lies between them, where missing; NaN where there is none."""
        return op.where(self.there, self.zeroed, self.mean)


def middled(length: int) -> NDArray[np.float64]:
    """Return [T], the steps counted from the middle of the window."""
    return np.arange(length, dtype=np.float64) - (length - 1) / 2


def sink(values: Var, there: Var) -> Var:
    """Return a window [N, C, T] with minus infinity where it has no value."""
    return op.where(there, values, op.const(np.float32(-np.inf)))


def sort(sunken: Var, length: int) -> Var:
    """Return a window [N, C, T] with each channel's values in descending order; many are sorted faster by NumPy."""
    return op.top_k(sunken, op.const(np.array([length], dtype=np.int64)))[0]


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


def _picks(length: int) -> NDArray[np.float64]:
    """Return [T, 3], what adds up all steps, the last alone and the one before it alone; [1, 2] of a single step."""
    newest = np.eye(length)[:, ::-1][:, :2]
    return np.column_stack([np.ones(length), newest])


def _interpolation(length: int, descending: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each count of values, 0 to T, the places of the lower and upper neighbours and their weights.

    Returns:
        Both [T + 1, 2 * Q]: of all lower neighbours, then of all upper ones.
    """
    place = np.arange(-1, length)[:, None] * np.array(list(SHARES.values()))
    below = np.floor(place)
    places = np.hstack([below, np.ceil(place)]).astype(np.int64)
    if descending:
        places = np.arange(-1, length)[:, None] - places
    weights = np.hstack([1 - (place - below), place - below])
    places[0], weights[0] = length - 1, np.nan
    return places, weights
