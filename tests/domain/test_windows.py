"""Training and serving cut the same windows: the whole history at once, or as readings arrive."""

from datetime import UTC, datetime

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldloop.domain.grid import DeviceGrid
from fieldloop.domain.stream import WindowStream
from fieldloop.domain.windows import OUT_OF_STREAM, WindowSpec, cut, device_history, on_time, window_hash
from tests.domain.live import pushed

STEP = 600_000_000


def spec(length: int = 3, grace_steps: float = 0, rules: tuple = ("mean", "last")) -> WindowSpec:
    return WindowSpec(("a", "b"), rules, STEP, length, int(grace_steps * STEP))


@st.composite
def arrivals(draw):
    """Readings of one device in order of arrival: late, repeated, with gaps, several a message."""
    count = draw(st.integers(0, 60))
    jumps = draw(st.lists(st.sampled_from([-3, -1, 0, 0, 1, 1, 1, 2, 9]), min_size=count, max_size=count))
    within = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    event_us = (np.cumsum(np.array(jumps, dtype=np.int64)) + 1000) * STEP + np.array(within, np.int64) * STEP // 4
    channel = np.array(draw(st.lists(st.integers(-1, 1), min_size=count, max_size=count)), dtype=np.int64)
    value = np.array(draw(st.lists(st.floats(-1e6, 1e6), min_size=count, max_size=count)), dtype=np.float64)
    message = 1 + np.cumsum(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), dtype=np.int64)
    return channel, event_us, value, message


@settings(max_examples=300)
@given(
    arrivals(),
    st.integers(1, 4),
    st.sampled_from([0, 0.5, 2]),
    st.sampled_from([("mean", "last"), ("sum", "count"), ("min", "max")]),
    st.booleans(),
    st.integers(0, 4),
    st.data(),
)
def test_stream_gives_bit_for_bit_the_windows_of_the_history(readings, length, grace, rules, clock, least, data):
    """However the messages are batched and the stream is interrupted, edge windows equal training windows."""
    wanted = msgspec.structs.replace(spec(length, grace, rules), clock=clock, least=min(least, length))
    channel, event_us, value, message = readings
    grid, rows = device_history(channel, event_us, value, message, wanted)
    expected = cut(grid, rows, length, STEP, clock)

    stream, ends, values = WindowStream(wanted), [], []
    position = 0
    while position < len(message):
        last = data.draw(st.integers(int(message[position]), int(message[-1])))
        until = int(np.searchsorted(message, last, side="right"))
        batch = slice(position, until)
        out = pushed(stream, wanted, channel[batch], event_us[batch], value[batch], message[batch])
        ends.append(out.end_us)
        values.append(out.values)
        stream = WindowStream.restore(wanted, stream.state())
        position = until
    got_ends = np.concatenate(ends) if ends else np.zeros(0, np.int64)
    got = np.concatenate(values) if values else np.zeros_like(expected)
    assert got_ends.tolist() == (grid.steps[rows] * STEP).tolist()
    assert got.tobytes() == expected.tobytes()


def test_reading_after_its_step_closed_is_late():
    """A reading is late once an earlier message has carried the watermark past its step and the grace."""
    event_us = np.array([10, 11, 10, 12, 10], dtype=np.int64) * STEP
    message = np.array([0, 0, 1, 2, 3])
    timely, watermark = on_time(event_us, message, spec())
    assert timely.tolist() == [True, True, False, True, False]
    assert watermark == 12 * STEP
    timely, _ = on_time(event_us, message, spec(grace_steps=2))
    assert timely.all()


def test_history_is_never_late_and_makes_nothing_late():
    """Readings from outside the stream are kept before, between and after live ones, judged among themselves."""
    live = np.array([10, 12, 11, 13, 20], dtype=np.int64)
    history = np.array([3, 4, 11, 12, 30], dtype=np.int64)
    message = np.append(np.full(len(history), OUT_OF_STREAM), np.arange(1, 1 + len(live)))
    event_us = np.append(history * STEP, live * STEP + 1)
    channel = np.zeros(len(message), dtype=np.int64)
    grid, rows = device_history(channel, event_us, np.arange(10.0), message, spec(1))
    of_step = dict(zip(grid.steps.tolist(), grid.values[0].tolist(), strict=True))
    kept = {step: value for step, value in of_step.items() if value == value}
    assert kept == {3: 0, 4: 1, 10: 5, 11: 2, 12: 4.5, 13: 8, 20: 9}
    assert grid.steps[rows].tolist() == [4, 10, 11, 12, 13, 20]


def test_live_readings_before_any_history_are_kept():
    """The first step is the earliest that either was seen in."""
    event_us = np.array([20, 21, 10, 11, 12], dtype=np.int64) * STEP
    message = np.array([OUT_OF_STREAM, OUT_OF_STREAM, 1, 2, 3])
    grid, rows = device_history(np.zeros(5, np.int64), event_us, np.arange(5.0), message, spec(1))
    assert grid.steps[rows].tolist() == [11, 12, 20]
    history, _ = device_history(np.zeros(2, np.int64), event_us[:2], np.arange(2.0), message[:2], spec(1))
    assert history.steps.tolist() == [20]


def test_window_spans_gaps_with_nan():
    """Steps without a reading are NaN inside a window, however wide the gap."""
    steps = np.array([0, 1, 2, 50, 51], dtype=np.int64)
    channel = np.zeros(6, dtype=np.int64)
    event_us = np.append(steps, 99) * STEP
    grid, rows = device_history(channel, event_us, np.arange(6.0), np.arange(6), spec(3))
    windows = grid.windows(3, rows)[:, 0]
    assert grid.steps[rows].tolist() == [50, 51]
    assert np.isnan(windows[0, :2]).all()
    assert windows[0, 2] == 3
    assert windows[1, 1:].tolist() == [3, 4]


def test_clock_counts_the_seconds_of_the_week():
    """The last row says when each step begins, also where the device was silent; weeks begin on Monday, UTC."""
    monday = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * 1_000_000 // STEP
    grid = DeviceGrid(np.array([monday - 2, monday + 1]), np.ones((1, 2), dtype=np.float32))
    assert cut(grid, np.array([1]), 4, STEP, clock=True)[0, 1].tolist() == [7 * 86400 - 1200, 7 * 86400 - 600, 0, 600]


def test_hash_differs_when_one_bit_does():
    """Equal windows have equal hashes, NaN included; a changed last bit changes the hash."""
    windows = np.array([[[1.0, np.nan]], [[1.0, np.nan]], [[np.nextafter(np.float32(1), np.float32(2)), np.nan]]], "f4")
    first, same, other = window_hash(windows)
    assert first == same != other
