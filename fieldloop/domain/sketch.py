"""Mergeable sketches of distributions: what a target says of its scores, latencies and inputs in under a kilobyte.

A value falls into a bucket of one fixed grid: zero, or a sign and a power of `GROWTH`. Counts are integers on a grid
that everybody shares, so merging is exact in any order and grouping, and two sketches can always be compared. A bucket
is `GROWTH - 1` wide relative to its values (DDSketch, Masson et al., VLDB 2019, with the grid fixed).
"""

import math
from collections.abc import Iterable, Sequence
from operator import lt
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

GROWTH: Final = 1.04  # a bucket's upper edge over its lower one
SMALLEST: Final = 1e-9  # magnitudes below count as zero
LARGEST: Final = 1e12  # magnitudes above count as this
_LOG: Final = math.log(GROWTH)
_MIDDLE: Final = 2 * GROWTH / (1 + GROWTH)  # of a bucket over its lower edge: least relative error at both edges
_TOP: Final = math.floor(math.log(LARGEST / SMALLEST) / _LOG) + 1


class Sketch(msgspec.Struct, frozen=True):
    """Counts of values by bucket.

    Attributes:
        keys: buckets that hold something, ascending with the values in them.
        counts: how many values each holds.
        missing: values that were NaN.

    Raises:
        ValueError: these are no counts by bucket; sketches come from targets, too.
    """

    keys: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    missing: int = 0

    def __post_init__(self) -> None:
        """Refuse what could not be merged."""
        keys, counts = self.keys, self.counts
        if len(keys) != len(counts):
            raise ValueError(f"sketch: expected a count a bucket, got {len(counts)} for {len(keys)} buckets")
        if keys and not (keys[0] >= -_TOP and keys[-1] <= _TOP + 1 and all(map(lt, keys, keys[1:]))):
            raise ValueError(f"sketch: expected buckets from {-_TOP} to {_TOP}, ascending")
        if self.missing < 0 or min(counts, default=1) < 1:
            raise ValueError("sketch: expected counts of at least 1")

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> "Sketch":
        """Sketch some values of any shape; infinite ones count as the largest."""
        tally = Tally()
        tally.add(values)
        return tally.sketch()

    @property
    def count(self) -> int:
        """How many values there are, missing ones left out."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Return the value below which this share (0 to 1) of the values lies, within half a bucket; NaN where none."""
        if not self.counts:
            return math.nan
        upto = np.cumsum(self.counts)
        place = int(np.searchsorted(upto, max(1, math.ceil(share * upto[-1]))))
        return float(_middles(np.array([self.keys[place]]))[0])

    def mean(self) -> float:
        """Return the mean, within half a bucket; NaN where there are no values."""
        if not self.counts:
            return math.nan
        return float(np.average(_middles(np.array(self.keys)), weights=np.array(self.counts)))

    def magnitudes(self) -> "Sketch":
        """Return the sketch of the values without their signs."""
        keys, counts = np.abs(np.array(self.keys, dtype=np.int64)), np.array(self.counts, dtype=np.int64)
        return _summed(keys, counts, self.missing)

    def with_missing(self) -> "Sketch":
        """Return the sketch with its missing values as one more bucket, above all others."""
        if not self.missing:
            return self
        return Sketch((*self.keys, _TOP + 1), (*self.counts, self.missing))

    def share_above(self, limit: float) -> float:
        """Return the share of values in buckets above the one of `limit`; 0 where there are none."""
        if not self.counts:
            return 0.0
        above = np.array(self.keys) > _keys(np.array([limit]))[0]
        return float(np.array(self.counts)[above].sum() / self.count)


class Tally:
    """A sketch that is being made: add values as they come."""

    def __init__(self, begin: Sketch | None = None) -> None:
        begin = begin or Sketch()
        self._counts: dict[int, int] = dict(zip(begin.keys, begin.counts, strict=True))
        self._missing = begin.missing

    def add(self, values: NDArray[np.floating]) -> None:
        """Count values of any shape; NaN as missing, infinite ones as the largest."""
        known = values[~np.isnan(values)]
        self._missing += values.size - known.size
        keys, counts = np.unique(_keys(known), return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self._counts[key] = self._counts.get(key, 0) + count

    def add_one(self, value: float) -> None:
        """Count one value, the quick way: for latencies on the hot path."""
        if math.isnan(value):
            self._missing += 1
            return
        key = _key(value)
        self._counts[key] = self._counts.get(key, 0) + 1

    def sketch(self) -> Sketch:
        """Return what has been counted so far."""
        keys = sorted(self._counts)
        return Sketch(tuple(keys), tuple(self._counts[key] for key in keys), self._missing)


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """Return the sketch of all values together; of none, the empty one."""
    every = list(sketches)
    keys = np.array([key for sketch in every for key in sketch.keys], dtype=np.int64)
    counts = np.array([count for sketch in every for count in sketch.counts], dtype=np.int64)
    return _summed(keys, counts, sum(sketch.missing for sketch in every))


def distance(first: Sketch, second: Sketch) -> float:
    """Return the largest gap between the two distribution functions (Kolmogorov and Smirnov), 0 to 1.

    Seen through the buckets: at their edges it is exact. 0 where one of the two is empty.
    """
    if not first.counts or not second.counts:
        return 0.0
    keys = np.union1d(first.keys, second.keys)
    gaps = _cumulated(first, keys) - _cumulated(second, keys)
    return float(np.abs(gaps).max())


def _summed(keys: NDArray[np.int64], counts: NDArray[np.int64], missing: int) -> Sketch:
    """Return the sketch of counts whose keys may repeat."""
    unique, place = np.unique(keys, return_inverse=True)
    totals = np.zeros(len(unique), dtype=np.int64)
    np.add.at(totals, place, counts)
    return Sketch(tuple(unique.tolist()), tuple(totals.tolist()), missing)


def _cumulated(sketch: Sketch, keys: NDArray[np.int64]) -> NDArray[np.float64]:
    upto = np.cumsum(sketch.counts)
    places = np.searchsorted(np.array(sketch.keys), keys, side="right")
    shares: NDArray[np.float64] = np.concatenate([[0], upto])[places] / upto[-1]
    return shares


def _keys(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the buckets of values without NaN: 0 for zero, else sign times (1 + whole steps above SMALLEST)."""
    wide = values.astype(np.float64, copy=False).ravel()
    magnitudes = np.clip(np.abs(wide), SMALLEST, LARGEST)
    steps = np.floor(np.log(magnitudes / SMALLEST) / _LOG).astype(np.int64) + 1
    return np.where(np.abs(wide) < SMALLEST, 0, np.sign(wide).astype(np.int64) * np.minimum(steps, _TOP))


def _key(value: float) -> int:
    """Return one value's bucket, the same as `_keys` gives."""
    magnitude = min(abs(value), LARGEST)
    if magnitude < SMALLEST:
        return 0
    step = min(math.floor(math.log(magnitude / SMALLEST) / _LOG) + 1, _TOP)
    return step if value > 0 else -step


def _middles(keys: NDArray[np.int64] | Sequence[int]) -> NDArray[np.float64]:
    """Return the value that stands for each bucket."""
    places = np.asarray(keys)
    magnitudes = SMALLEST * GROWTH ** (np.abs(places) - 1.0) * _MIDDLE
    return np.where(places == 0, 0.0, np.sign(places) * magnitudes)
