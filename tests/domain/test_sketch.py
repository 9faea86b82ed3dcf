"""Sketches: merging is exact in any order, and what is read off them is within a bucket."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.sketch import GROWTH, LARGEST, SMALLEST, Sketch, Tally, distance, merge

numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
arrays = st.lists(numbers, max_size=60).map(lambda values: np.array(values, dtype=np.float64))
finite = st.lists(st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=60)


@given(st.lists(arrays, max_size=5), st.randoms())
def test_merging_parts_in_any_order_is_sketching_the_whole(parts: list[np.ndarray], random: object) -> None:
    """Associative and commutative, exactly: whatever the order of targets, the fleet's sketch is one."""
    whole = Sketch.of(np.concatenate([*parts, np.empty(0)]))
    sketches = [Sketch.of(part) for part in parts]
    assert merge(sketches) == whole
    random.shuffle(sketches)  # type: ignore[attr-defined]
    nested = Sketch()
    for sketch in sketches:
        nested = merge([sketch, nested])
    assert nested == whole


@given(arrays)
def test_the_empty_sketch_changes_nothing(values: np.ndarray) -> None:
    """Of no values, and of none at all."""
    sketch = Sketch.of(values)
    assert merge([sketch, Sketch()]) == merge([sketch]) == sketch
    assert merge([]) == Sketch()


@pytest.mark.parametrize(
    ("keys", "counts", "missing"),
    [((1, 2), (1,), 0), ((2, 1), (1, 1), 0), ((1, 1), (1, 1), 0), ((10**6,), (1,), 0), ((1,), (0,), 0), ((), (), -1)],
)
def test_what_is_no_sketch_is_refused(keys: tuple[int, ...], counts: tuple[int, ...], missing: int) -> None:
    """Made here or decoded from a message."""
    with pytest.raises(ValueError, match="sketch: expected"):
        Sketch(keys, counts, missing)
    message = msgspec.json.encode({"keys": keys, "counts": counts, "missing": missing})
    with pytest.raises(msgspec.ValidationError, match="sketch: expected"):
        msgspec.json.decode(message, type=Sketch)


@given(arrays)
def test_every_value_is_counted_once(values: np.ndarray) -> None:
    """NaN as missing, all else by bucket."""
    sketch = Sketch.of(values)
    assert sketch.missing == np.isnan(values).sum()
    assert sketch.count + sketch.missing == len(values)
    assert list(sketch.keys) == sorted(set(sketch.keys))


@given(arrays, arrays)
def test_a_tally_goes_on_from_a_sketch(first: np.ndarray, second: np.ndarray) -> None:
    """An agent that restarts loses nothing that it had counted."""
    tally = Tally(Sketch.of(first))
    tally.add(second)
    assert tally.sketch() == merge([Sketch.of(first), Sketch.of(second)])


@given(finite)
def test_quantiles_are_within_a_bucket(values: list[float]) -> None:
    """Relative to the value, whatever its size."""
    sketch = Sketch.of(np.array(values))
    for share in (0.0, 0.25, 0.5, 0.99, 1.0):
        exact = float(np.quantile(values, share, method="inverted_cdf"))
        assert math.isclose(sketch.quantile(share), exact, rel_tol=GROWTH - 1, abs_tol=SMALLEST)


@given(st.floats(-1e9, 1e9))
def test_one_value_goes_where_an_array_of_it_goes(value: float) -> None:
    """The quick way and the vectorized way agree to the last bit of a logarithm."""
    tally = Tally()
    tally.add_one(value)
    (one,), (many,) = tally.sketch().keys, Sketch.of(np.array([value])).keys
    assert abs(one - many) <= 1


@given(finite, finite)
def test_distance_is_the_gap_of_distribution_functions(first: list[float], second: list[float]) -> None:
    """Symmetric, 0 to itself, and at most the exact gap, which buckets can only hide."""
    one, two = Sketch.of(np.array(first)), Sketch.of(np.array(second))
    at = np.sort(np.concatenate([first, second]))
    exact = max(abs(np.mean(np.array(first) <= x) - np.mean(np.array(second) <= x)) for x in at)
    assert distance(one, one) == 0
    assert distance(one, two) == distance(two, one) <= exact + 1e-12


def test_a_shifted_distribution_is_far_and_a_sample_of_the_same_is_near() -> None:
    """What the gates read: 5,000 predictions against 5,000."""
    rng = np.random.default_rng(7)
    reference = Sketch.of(rng.normal(800, 200, 5000))
    assert distance(reference, Sketch.of(rng.normal(800, 200, 5000))) < 0.05
    assert distance(reference, Sketch.of(rng.normal(1000, 200, 5000))) > 0.35


def test_what_lies_outside_the_grid_is_kept_at_its_end() -> None:
    """Infinite and huge values share a bucket; tiny ones are zero."""
    sketch = Sketch.of(np.array([np.inf, 1e300, LARGEST, -np.inf, 1e-300, 0.0]))
    assert (sketch.keys[0], sketch.counts) == (-sketch.keys[-1], (1, 2, 3))


def test_shares_means_and_emptiness() -> None:
    """The few figures that gates and people read."""
    sketch = Sketch.of(np.array([1.0, 1.0, 10.0, 100.0]))
    assert sketch.share_above(5.0) == 0.5
    assert math.isclose(sketch.mean(), 28.0, rel_tol=0.04)
    empty = Sketch()
    assert math.isnan(empty.quantile(0.5))
    assert math.isnan(empty.mean())
    assert empty.share_above(1) == distance(empty, sketch) == 0


def test_a_thousand_predictions_take_under_a_kilobyte() -> None:
    """Three hundred kilowatts of spread, as JSON."""
    values = np.random.default_rng(1).gamma(2.0, 300.0, 1000)
    assert len(msgspec.json.encode(Sketch.of(values))) < 1024
