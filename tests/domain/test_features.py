"""The feature graph against an independent reference, and against itself: a row alone and in a batch."""

import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fieldloop.domain.graph import feature_graph
from fieldloop.domain.recipe import Recipe

LENGTH = 6
CHANNELS = [
    {"metric": "a", "valid": [-50, 50], "frozen_steps": 3},
    {"metric": "b", "frozen_steps": 2},
    {"metric": "c", "valid": [0.1, 0.7]},
]
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 0.7, 1.0, 2.0, 50.0, 51.0, math.nan, math.inf, -math.inf]),
    st.floats(width=32),
    st.floats(-60, 60, width=32),
)


def recipe(channels: list[dict[str, object]], length: int = LENGTH) -> Recipe:
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
            "features": ["level", "spread", "trend"],
            "split": {"train_until": "2020-01-01T00:00:00Z", "test_until": "2021-01-01T00:00:00Z"},
            "candidates": [{"algorithm": "ridge"}],
            "parity": {"limit": 1},
        }
    )


def session(of: Recipe) -> onnxruntime.InferenceSession:
    """The feature graph, ready to run on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(feature_graph(of)[0].SerializeToString(), options)


@pytest.fixture(scope="module")
def three() -> onnxruntime.InferenceSession:
    """The graph of three channels with different masks."""
    return session(recipe(CHANNELS))


@pytest.fixture(scope="module")
def one() -> onnxruntime.InferenceSession:
    """The graph of a single channel."""
    return session(recipe([{"metric": "a"}]))


def run(graph: onnxruntime.InferenceSession, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features of windows [N, C, T]."""
    result: NDArray[np.float32] = graph.run(["features"], {"window": windows})[0]
    return result


def reference(window: NDArray[np.float32], channels: list[dict[str, object]]) -> list[np.float32]:
    """Features of one window, feature by feature, in plain Python floats."""
    features = [reference_channel(row.tolist(), channel) for row, channel in zip(window, channels, strict=True)]
    with np.errstate(over="ignore"):
        return [np.float32(features[c][f]) for f in range(8) for c in range(len(channels))]


def reference_channel(values: list[float], channel: dict[str, object]) -> list[float]:
    """The eight features of one channel."""
    values = masked(values, channel)
    there = [(step, value) for step, value in enumerate(values) if not math.isnan(value)]
    delta = values[-1] - values[-2]
    if not there:
        return [math.nan] * 8
    count = float(len(there))
    mean = added([value for _, value in there]) / count
    middle = added([float(step) for step, _ in there]) / count
    lowest, highest = min(value for _, value in there), max(value for _, value in there)
    std = math.sqrt(added([(value - mean) * (value - mean) for _, value in there]) / count)
    rise = added([(step - middle) * (value - mean) for step, value in there])
    run_ = added([(step - middle) * (step - middle) for step, _ in there])
    slope = rise / run_ if run_ else math.nan
    return [values[-1], mean, lowest, highest, std, highest - lowest, slope, delta]


def masked(values: list[float], channel: dict[str, object]) -> list[float]:
    """The values with NaN where they are out of range or frozen."""
    lowest, highest = (float(np.float32(bound)) for bound in channel.get("valid", (-math.inf, math.inf)))  # type: ignore[attr-defined]
    frozen: set[int] = set()
    steps = channel.get("frozen_steps")
    if isinstance(steps, int):
        for start in range(len(values) - steps + 1):
            if all(value == values[start] for value in values[start : start + steps]):
                frozen.update(range(start, start + steps))
    return [
        value if lowest <= value <= highest and step not in frozen else math.nan for step, value in enumerate(values)
    ]


def added(values: list[float]) -> float:
    """The sum in the given order (`sum` compensates rounding in later Pythons)."""
    total = 0.0
    for value in values:
        total += value
    return total


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits of float32 values; every NaN alike, and both zeros."""
    return (np.where(np.isnan(values), np.float32(np.nan), values) + np.float32(0)).view(np.uint32)


def finite(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows whose channel without a range holds no infinity: differences of those are nobody's feature."""
    return np.where(np.isinf(windows), np.float32(3e38), windows)


@given(arrays(np.float32, (5, 3, LENGTH), elements=VALUES))
@settings(deadline=None, max_examples=300)
def test_features_are_the_reference(three: onnxruntime.InferenceSession, windows: NDArray[np.float32]) -> None:
    """Graph and plain Python give the same bits, whatever is missing, frozen or out of range."""
    windows = finite(windows)
    expected = np.array([reference(window, CHANNELS) for window in windows], dtype=np.float32)
    np.testing.assert_array_equal(bits(run(three, windows)), bits(expected))


@given(arrays(np.float32, st.tuples(st.integers(1, 70), st.just(3), st.just(LENGTH)), elements=VALUES))
@settings(deadline=None, max_examples=100)
def test_row_and_batch(three: onnxruntime.InferenceSession, windows: NDArray[np.float32]) -> None:
    """A window alone gives the bits that it gives in a batch."""
    alone = np.concatenate([run(three, window[None]) for window in windows])
    np.testing.assert_array_equal(alone.view(np.uint32), run(three, windows).view(np.uint32))


@given(arrays(np.float32, st.tuples(st.integers(1, 70), st.just(1), st.just(LENGTH)), elements=VALUES))
@settings(deadline=None, max_examples=100)
def test_row_and_batch_of_one_channel(one: onnxruntime.InferenceSession, windows: NDArray[np.float32]) -> None:
    """A lone channel is no exception."""
    alone = np.concatenate([run(one, window[None]) for window in windows])
    np.testing.assert_array_equal(alone.view(np.uint32), run(one, windows).view(np.uint32))


@pytest.mark.parametrize(("channels", "length"), [(1, 60), (1, 61), (2, 13), (5, 7), (8, 60), (3, 2)])
def test_row_and_batch_of_any_shape(channels: int, length: int) -> None:
    """Vector widths and memory addresses leave no trace, on any shape and with several threads."""
    of = recipe([{"metric": f"m{index}"} for index in range(channels)], length)
    windows = np.random.default_rng(7).lognormal(0, 3, (2_001, channels, length)).astype(np.float32)
    windows[np.random.default_rng(8).random(windows.shape) < 0.1] = np.nan
    graph = onnxruntime.InferenceSession(feature_graph(of)[0].SerializeToString())
    alone = np.concatenate([run(graph, window[None]) for window in windows])
    np.testing.assert_array_equal(alone.view(np.uint32), run(graph, windows).view(np.uint32))


def test_nothing_there(three: onnxruntime.InferenceSession) -> None:
    """A window without a single value has no features but NaN."""
    assert np.isnan(run(three, np.full((2, 3, LENGTH), np.nan, dtype=np.float32))).all()


def test_frozen_run_only_as_long_as_declared(three: onnxruntime.InferenceSession) -> None:
    """Three equal values go where three are declared, and two stay."""
    window = np.array([[[1, 1, 1, 2, 3, 3], [1, 2, 3, 4, 5, 6], [0.2, 0.2, 0.2, 0.2, 0.2, 0.2]]], dtype=np.float32)
    features = dict(zip(feature_graph(recipe(CHANNELS))[1], run(three, window)[0].tolist(), strict=True))
    assert features["a.min"] == 2
    assert features["a.mean"] == pytest.approx(8 / 3)
    assert features["b.slope"] == 1
    assert features["c.std"] == 0


def test_names(three: onnxruntime.InferenceSession) -> None:
    """Every column has a name, a channel's after its metric."""
    names = feature_graph(recipe(CHANNELS))[1]
    assert len(names) == three.get_outputs()[0].shape[1] == len(set(names))
    assert names[:4] == ("a.last", "b.last", "c.last", "a.mean")
