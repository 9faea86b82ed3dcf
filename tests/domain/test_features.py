"""The feature graph against an independent reference, and against itself: alone, in a batch, built for batches."""

import math
from datetime import UTC, datetime
from typing import get_args

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fieldloop.domain.graph import batch_graphs, feature_graph
from fieldloop.domain.recipe import Family, Recipe
from tests.domain import reference

LENGTH = 12
CHANNELS: list[reference.Channel] = [
    {"metric": "a", "valid": [-50, 50], "frozen_steps": 3},
    {"metric": "b", "frozen_steps": 2},
    {"metric": "c", "valid": [0.1, 0.7]},
]
OF_CHANNELS = tuple(family for family in get_args(Family) if family not in ("calendar", "patterns", "unrest"))
OF_ONE = tuple(family for family in OF_CHANNELS if family != "cross_channel")
WILD = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 0.7, 1.0, 2.0, 50.0, 51.0, math.nan, math.inf, -math.inf]),
    st.floats(width=32),
    st.floats(-60, 60, width=32),
)
# few enough binary digits that a mean is the same whichever way it is added up
PLAIN = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.125, 0.5]), st.integers(-480, 480).map(lambda i: i / 8)
)


def recipe(channels: list[reference.Channel], length: int = LENGTH, features: tuple[str, ...] = OF_CHANNELS) -> Recipe:
    """A recipe that reads the given channels."""
    return Recipe.model_validate(
        {
            "name": "r",
            "description": "",
            "profiles": ["p"],
            "channels": channels,
            "target": {"metric": "y"},
            "grid": {"step_s": 60},
            "window": {"length": length},
            "features": features,
            "split": {"train_until": "2020-01-01T00:00:00Z", "test_until": "2021-01-01T00:00:00Z"},
            "candidates": [{"algorithm": "ridge"}],
            "parity": {"limit": 1},
        }
    )


class Built:
    """The feature graph of a recipe, both builds."""

    def __init__(self, of: Recipe, threads: int = 1) -> None:
        graph, self.names = feature_graph(of)
        batch = batch_graphs(of)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.graph, self.masks, self.families = (
            onnxruntime.InferenceSession(part.SerializeToString(), options)
            for part in (graph, batch.masks, batch.features)
        )

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of windows [N, R, T] by the graph of a release."""
        result: NDArray[np.float32] = self.graph.run(["features"], {"window": windows})[0]
        return result

    def alone(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same, a window at a time."""
        return np.concatenate([self.run(window[None]) for window in windows])

    def batch(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same by the build for batches."""
        masked = self.masks.run(None, {"window": windows})[0]
        result: NDArray[np.float32] = self.families.run(None, {"masked": masked, "ordered": np.sort(masked)})[0]
        return result


@pytest.fixture(scope="module")
def three() -> Built:
    """The graph of three channels with different masks."""
    return Built(recipe(CHANNELS))


@pytest.fixture(scope="module")
def one() -> Built:
    """The graph of a single channel."""
    return Built(recipe([{"metric": "a"}], features=OF_ONE))


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits of float32 values, every NaN alike."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


def assert_one_and_the_same(built: Built, windows: NDArray[np.float32]) -> None:
    """Rows alone, rows in a batch, and the build for batches give the same bits."""
    alone = bits(built.alone(windows))
    np.testing.assert_array_equal(bits(built.run(windows)), alone)
    np.testing.assert_array_equal(bits(built.batch(windows)), alone)


@given(arrays(np.float32, (5, 3, LENGTH), elements=PLAIN))
@settings(max_examples=40)
def test_features_are_the_reference(three: Built, windows: NDArray[np.float32]) -> None:
    """The graph gives what NumPy gives, whatever is missing, frozen or out of range."""
    expected = [reference.features(window, CHANNELS) for window in windows]
    table = np.array([[row.get(name, math.nan) for name in three.names] for row in expected])
    np.testing.assert_allclose(three.run(windows), table.astype(np.float32), rtol=1e-6, atol=1e-7)


def test_no_feature_is_left_untried(three: Built) -> None:
    """The reference knows every feature of the graph."""
    window = np.random.default_rng(1).normal(0, 1, (3, LENGTH)).astype(np.float32)
    assert set(three.names) == set(reference.features(window, [{"metric": name} for name in "abc"]))


@given(arrays(np.float32, st.tuples(st.integers(1, 70), st.just(3), st.just(LENGTH)), elements=WILD))
@settings(max_examples=60)
def test_row_and_batch(three: Built, windows: NDArray[np.float32]) -> None:
    """A window alone gives the bits that it gives in a batch, by either build."""
    assert_one_and_the_same(three, windows)


@given(arrays(np.float32, st.tuples(st.integers(1, 70), st.just(1), st.just(LENGTH)), elements=WILD))
@settings(max_examples=60)
def test_row_and_batch_of_one_channel(one: Built, windows: NDArray[np.float32]) -> None:
    """A lone channel is no exception."""
    assert_one_and_the_same(one, windows)


@given(st.lists(st.sampled_from(OF_CHANNELS), unique=True, min_size=1), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_both_builds_of_any_families(families: list[str], seed: int) -> None:
    """Both have the same columns in the same order, whether the release's windows are sorted or not."""
    random = np.random.default_rng(seed)
    windows = random.normal(0, 20, (20, len(CHANNELS), LENGTH)).astype(np.float32)
    windows[random.random(windows.shape) < 0.2] = np.nan
    built = Built(recipe(CHANNELS, features=tuple(families)))
    np.testing.assert_array_equal(bits(built.run(windows)), bits(built.batch(windows)))


SHAPES = [(1, 60), (1, 61), (2, 13), (5, 7), (8, 60), (3, 3), (2, 300), (1, 4096)]  # channels, length


@pytest.mark.parametrize(("channels", "length"), SHAPES)
def test_row_and_batch_of_any_shape(channels: int, length: int) -> None:
    """Vector widths and memory addresses leave no trace, on any shape and with several threads."""
    of = recipe([{"metric": f"m{i}"} for i in range(channels)], length, OF_ONE if channels == 1 else OF_CHANNELS)
    windows = np.random.default_rng(7).lognormal(0, 3, (131, channels, length)).astype(np.float32)
    windows[np.random.default_rng(8).random(windows.shape) < 0.1] = np.nan
    windows[::13, :, ::3] = 0.0
    windows[::13, :, ::4] = -0.0
    assert_one_and_the_same(Built(of, threads=2), windows)


@pytest.mark.parametrize(("channels", "length"), [(1, 36), (2, 45), (1, 170), (3, 247), (1, 1300)])
def test_courses_are_the_reference(channels: int, length: int) -> None:
    """Courses of single steps and of blocks, with gaps, repeats and new levels, to the same bits however built."""
    built = Built(recipe([{"metric": f"m{i}"} for i in range(channels)], length, ("patterns",)))
    random = np.random.default_rng(5)
    windows = (np.sin(np.arange(length)) + random.normal(0, 0.2, (40, channels, length))).round(1).astype(np.float32)
    windows[::3, :, -9:] += np.array([3, 0.5, 0, -2] * 4, np.float32)[: len(windows[::3]), None, None]
    windows[random.random(windows.shape) < 0.02] = np.nan
    windows[7] = np.sin(np.arange(length) % 8)  # each course comes again: none is odd
    windows[8, :, : length - 20] = np.nan
    expected = [[reference.oddity(row.astype(np.float64)).get("oddity", math.nan) for row in rows] for rows in windows]
    np.testing.assert_allclose(built.run(windows), np.array(expected, np.float32), rtol=1e-5)
    assert np.nanmax(np.array(expected)) > 1
    assert_one_and_the_same(built, windows)


@pytest.mark.parametrize(("channels", "length"), [(1, 48), (2, 71), (3, 700), (1, 4096)])
def test_stretches_are_the_reference(channels: int, length: int) -> None:
    """Stretches of single steps and of blocks, wilder and calmer, with gaps, to the same bits however built."""
    built = Built(recipe([{"metric": f"m{i}"} for i in range(channels)], length, ("unrest",)))
    random = np.random.default_rng(5)
    windows = random.normal(100, 1, (40, channels, length)).astype(np.float32)
    windows[::3, :, -9:] *= np.linspace(0.9, 1.1, 9, dtype=np.float32)
    windows[1::3, :, -24 * max(1, length // 336) :] = 100
    windows[random.random(windows.shape) < 0.004] = np.nan
    windows[7] = 3  # nothing moves
    windows[8, :, : length - 20] = np.nan
    expected = [[reference.unrest(row.astype(np.float64)).get("unrest", math.nan) for row in rows] for rows in windows]
    np.testing.assert_allclose(built.run(windows), np.array(expected, np.float32), rtol=1e-5, atol=1e-6)
    assert np.nanmax(np.array(expected)) > 0.3
    assert_one_and_the_same(built, windows)


def test_rounding_is_no_unrest() -> None:
    """A course that comes again and again is as wild as ever, at any level and scale."""
    built = Built(recipe([{"metric": "a"}], 336, ("unrest",)))
    day = np.random.default_rng(6).normal(0, 1, 24)
    windows = np.stack([level + scale * np.tile(day, 14) for level in (0, 1e3, 1e6) for scale in (1e-3, 1, 1e3)])
    assert built.run(windows[:, None].astype(np.float32)).max() < 0.1


def test_nothing_there(three: Built) -> None:
    """A window without a single value has no features but NaN, and the count says so."""
    empty = three.run(np.full((2, 3, LENGTH), np.nan, dtype=np.float32))
    counts = np.array([name.endswith(".count") for name in three.names])
    assert np.isnan(empty[:, ~counts]).all()
    assert (empty[:, counts] == 0).all()


def test_frozen_run_only_as_long_as_declared() -> None:
    """Three equal values go where three are declared, and two stay."""
    window = np.array([[[1, 1, 1, 2, 3, 3], [1, 2, 3, 4, 5, 6], [0.2, 0.2, 0.2, 0.2, 0.2, 0.2]]], dtype=np.float32)
    short = Built(recipe(CHANNELS, 6))
    features = dict(zip(short.names, short.run(window)[0].tolist(), strict=True))
    assert features["a.min"] == 2
    assert features["a.mean"] == pytest.approx(8 / 3)
    assert features["b.slope"] == 1
    assert features["c.std"] == 0


def test_time_of_day_and_week() -> None:
    """Sine and cosine of the time at which the last step begins, to five minutes."""
    moment = datetime(2026, 11, 25, 18, 7, tzinfo=UTC)  # a Wednesday
    since_monday = (moment - datetime(2026, 11, 23, tzinfo=UTC)).total_seconds()
    steps = np.arange(-1, 1) * 60 + since_monday
    windows = np.stack([[1, 2], steps]).astype(np.float32)[None]
    built = Built(recipe([{"metric": "a"}], 2, ("calendar", "level")))
    assert_one_and_the_same(built, np.repeat(windows, 3, axis=0))
    features = dict(zip(built.names, built.run(windows)[0].tolist(), strict=True))
    day, week = (18 * 60 + 5) / 1440, (2 * 1440 + 18 * 60 + 5) / 10080
    assert features["time.day_sin"] == pytest.approx(math.sin(2 * math.pi * day), abs=1e-6)
    assert features["time.day_cos"] == pytest.approx(math.cos(2 * math.pi * day), abs=1e-6)
    assert features["time.week_sin"] == pytest.approx(math.sin(2 * math.pi * week), abs=1e-6)
    assert features["time.week_cos"] == pytest.approx(math.cos(2 * math.pi * week), abs=1e-6)
    assert features["a.last"] == 2


def test_names(three: Built) -> None:
    """Every column has a name, a channel's after its metric."""
    assert len(three.names) == three.graph.get_outputs()[0].shape[1] == len(set(three.names))
    assert three.names[:4] == ("a.count", "a.last", "a.mean", "a.min")
    assert {"a.q90", "b.median", "c.slope", "a~c.corr", "a.band4", "a.acf2"} <= set(three.names)


@pytest.mark.parametrize(
    ("channels", "length", "family", "message"),
    [
        (2, 2, "crossings", "at least 3 steps, got 2"),
        (1, 35, "patterns", "at least 36 steps, got 35"),
        (1, 47, "unrest", "at least 48 steps, got 47"),
        (1, 9, "cross_channel", "pairs 2 to 16 channels, got 1"),
        (65, 4096, "level", "4096 steps of 65 channels are 266,240 values; expected at most 262,144"),
    ],
)
def test_families_that_do_not_fit(channels: int, length: int, family: str, message: str) -> None:
    """A recipe that asks for the impossible says so."""
    with pytest.raises(ValueError, match=message):
        recipe([{"metric": f"m{index}"} for index in range(channels)], length, (family,))
