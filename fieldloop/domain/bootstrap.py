"""How sure a figure is, and how sure a difference: held-out windows drawn again and again, in blocks.

Windows overlap, neighbouring errors are alike, and devices see the same weather: windows drawn one by one would make
intervals far too narrow. What is drawn together is a block (Künsch, Annals of Statistics 17, 1989):

    split by device  a device; stretches of each where they are few
    split by run     a run; stretches of each where they are few
    else             a stretch of time, of all devices at once

A stretch is at least as long as what a window reads and its target looks ahead. Two models are compared on the same
draws, so that what is hard for both cancels out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.metrics import Floats, Ints, gain, tally
from fieldloop.domain.recipe import Metric, Recipe

DRAWS: Final = 1_000
LEVEL: Final = 0.95  # share of draws that an interval holds
LEAST_BLOCKS: Final = 8  # below, nothing is said: so few do not show how they vary
SEED: Final = 20_151  # of the draws: the same windows give the same interval in every run
_ENOUGH_WHOLE: Final = 20  # devices or runs from which they are drawn whole
_STRETCHES: Final = 100
_REACHES: Final = 4  # a stretch this many times what a window reaches over loses 4 % of an interval's width at its ends
_BINS: Final = 2_048  # of a score
_DRAWS_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Blocks:
    """What is drawn together.

    Attributes:
        code: [N] int64, the block of each window, from 0.
        number: how many blocks.
        unit: what a block is, in words.
    """

    code: Ints
    number: int
    unit: str

    def of(self, chosen: NDArray[np.bool_] | Ints) -> "Blocks":
        """Return the blocks of some windows."""
        there, code = np.unique(self.code[chosen], return_inverse=True)
        return Blocks(code.astype(np.int64), len(there), self.unit)


@dataclass(frozen=True)
class Interval:
    """Where a figure lies in `LEVEL` of the draws; NaN where there are too few blocks to say."""

    low: float
    high: float


def blocks(recipe: Recipe, device: NDArray[np.int32], end_us: Ints, run_us: Ints) -> Blocks:
    """Return the blocks of held-out windows.

    Args:
        recipe: how windows are split, how long they are, how far their target looks ahead.
        device: [N] int32 codes.
        end_us: [N] int64, start of each window's last step.
        run_us: [N] int64, start of its run, see `domain.parts`.
    """
    by = recipe.split.by
    if by not in ("device", "run", "history"):
        return _stretches(recipe, np.zeros(len(end_us), dtype=np.int64), end_us, "of all devices")
    unit = "run" if by == "run" else "device"
    own = _codes(device, run_us) if by == "run" else _codes(device)
    number = int(own.max(initial=-1)) + 1
    if number >= _ENOUGH_WHOLE:
        return Blocks(own, number, f"a whole {unit}")
    return _stretches(recipe, own, end_us, f"of one {unit}")


def intervals(
    recipe: Recipe, truth: NDArray[np.float32], predicted: NDArray[np.float32], of: Blocks
) -> dict[Metric, Interval]:
    """Return the interval of every figure.

    Args:
        recipe: what is predicted.
        truth: [N] float32.
        predicted: [N, P] float32.
        of: the windows' blocks.
    """
    counted = tally(recipe, truth, predicted, of.code, of.number, _BINS)
    drawn = [counted.weighted(weights).figures() for weights in _draws(of.number)]
    return {name: _interval(np.concatenate([part[name] for part in drawn]), of.number) for name in recipe.metrics()}


def gained(
    recipe: Recipe,
    metric: Metric,
    truth: NDArray[np.float32],
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    of: Blocks,
) -> Interval:
    """Return the interval of how much better the first predictions are than the second, on the same draws.

    Args:
        recipe: what is predicted.
        metric: the figure that is compared.
        truth: [N] float32.
        first: [N, P] float32.
        second: [N, P] float32.
        of: the windows' blocks.
    """
    both = [tally(recipe, truth, predicted, of.code, of.number, _BINS) for predicted in (first, second)]
    drawn = [
        gain(metric, *(counted.weighted(weights).figures()[metric] for counted in both))
        for weights in _draws(of.number)
    ]
    return _interval(np.concatenate(drawn), of.number)


def _stretches(recipe: Recipe, owner: Ints, end_us: Ints, whose: str) -> Blocks:
    """Cut each owner's time into stretches, about `_STRETCHES` in all."""
    first = np.full(int(owner.max(initial=0)) + 1, np.iinfo(np.int64).max)
    last = np.full(len(first), np.iinfo(np.int64).min)
    np.minimum.at(first, owner, end_us)
    np.maximum.at(last, owner, end_us)
    reach = (recipe.window.length + recipe.lookahead) * recipe.step_us
    total = int((last - first + recipe.step_us).sum()) if len(end_us) else reach
    length = max(reach, min(max(_REACHES * reach, total // _STRETCHES), total // _ENOUGH_WHOLE))
    code = _codes(owner, (end_us - first[owner]) // length)
    return Blocks(code, int(code.max(initial=-1)) + 1, f"{_duration(length)} {whose}")


def _codes(*columns: NDArray[np.integer]) -> Ints:
    """[N] int64: one number, from 0, for each different row."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        _, own = np.unique(column, return_inverse=True)
        _, code = np.unique(code * (int(own.max(initial=0)) + 1) + own, return_inverse=True)
    return code.astype(np.int64)


def _draws(number: int) -> Iterator[Floats]:
    """How often each block is in each draw, [some draws, blocks]; `DRAWS` of them in all, the same every time."""
    random = np.random.default_rng(SEED)
    for start in range(0, DRAWS, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, DRAWS - start)
        yield random.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)


def _interval(drawn: Floats, number: int) -> Interval:
    """The middle `LEVEL` of the draws that could say anything, if most of them could."""
    known = drawn[np.isfinite(drawn)]
    if number < LEAST_BLOCKS or len(known) < len(drawn) / 2:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _duration(us: int) -> str:
    """A length of time in words."""
    for name, size in (("days", 86_400_000_000), ("hours", 3_600_000_000), ("minutes", 60_000_000)):
        if us >= 2 * size:
            return f"{us / size:.3g} {name}"
    return f"{us / 1e6:.3g} seconds"
