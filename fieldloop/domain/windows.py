"""Windows for training and for serving: the same cut, once over a whole history and once as readings arrive.

A grid step is closed when the device's watermark (the latest event time it has sent) passes the step's end by the
grace. A reading whose step was closed before its message arrived is late and left out, in training as at the edge.
The first step a device is seen in may be half a step, so windows begin with the next one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.grid import DeviceGrid, to_grid
from fieldloop.domain.profile import GridRule, Profile

NEVER_US = int(np.iinfo(np.int64).min) // 4  # the watermark of a device that has sent nothing
HASH_BYTES = 8
CLOCK = "clock"  # name of the row that carries the time
WEEK_US = 7 * 86_400_000_000
MONDAY_US = 4 * 86_400_000_000  # 1970-01-05 00:00 UTC


class WindowSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model reads.

    Attributes:
        channels: [C] canonical metric names, in the order of the window's rows.
        rules: [C] how several readings within a step become one value.
        step_us: grid step, microseconds.
        length: T, steps in a window.
        grace_us: how long a step stays open behind the watermark, microseconds.
        clock: whether a last row follows the channels: seconds since Monday 00:00 UTC at which each step begins.
    """

    channels: tuple[str, ...]
    rules: tuple[GridRule, ...]
    step_us: int
    length: int
    grace_us: int = 0
    clock: bool = False

    @property
    def rows(self) -> int:
        """R, rows of a window."""
        return len(self.channels) + self.clock

    def channel_codes(self, profile: Profile) -> NDArray[np.int64]:
        """Return [P] int64: for each metric code of the profile its row in the window, -1 where it has none."""
        rows = {metric: row for row, metric in enumerate(self.channels)}
        return np.array([rows.get(metric, -1) for metric in profile.metrics()], dtype=np.int64)


@dataclass(frozen=True)
class Windows:
    """Windows of one device.

    Attributes:
        end_us: [N] int64, UTC microseconds at which the last step begins.
        values: [N, R, T] float32, NaN where missing.
    """

    end_us: NDArray[np.int64]
    values: NDArray[np.float32]


def on_time(
    event_us: NDArray[np.int64],
    message: NDArray[np.int64],
    spec: WindowSpec,
    watermark_us: int = NEVER_US,
) -> tuple[NDArray[np.bool_], int]:
    """Tell which readings of one device came before their step was closed.

    Args:
        event_us: [N] int64, in order of arrival.
        message: [N] int64, never decreasing; readings of one message arrive together.
        spec: step length and grace.
        watermark_us: latest event time before the first of them.

    Returns:
        [N] bool, and the watermark after the last of them.
    """
    if not len(event_us):
        return np.zeros(0, dtype=bool), watermark_us
    starts = np.flatnonzero(np.diff(message, prepend=message[0] - 1))
    latest = np.maximum.accumulate(np.append(watermark_us, np.maximum.reduceat(event_us, starts)))
    before = np.repeat(latest[:-1], np.diff(np.append(starts, len(event_us))))
    closes_us = (event_us // spec.step_us + 1) * spec.step_us + spec.grace_us
    return closes_us > before, int(latest[-1])


def closed_before(watermark_us: int, spec: WindowSpec) -> int:
    """Return the first step that is still open at this watermark."""
    return (watermark_us - spec.grace_us) // spec.step_us


def window_rows(grid: DeviceGrid, inputs: int, first_step: int, length: int) -> NDArray[np.int64]:
    """Return the rows of the grid at which a window ends: a step with an input reading, and its past fully seen.

    Args:
        grid: the device's grid; its first `inputs` rows are the window's channels.
        inputs: C.
        first_step: the first step in which the device was seen.
        length: T.
    """
    reported = ~np.isnan(grid.values[:inputs]).all(axis=0)
    return np.flatnonzero(reported & (grid.steps - length + 1 > first_step))


def device_history(
    channel: NDArray[np.int64],
    event_us: NDArray[np.int64],
    value: NDArray[np.float64],
    message: NDArray[np.int64],
    spec: WindowSpec,
    further_rules: Sequence[GridRule] = (),
) -> tuple[DeviceGrid, NDArray[np.int64]]:
    """Put one device's whole history onto its grid, and tell where windows end: what `WindowStream` does, at once.

    Args:
        channel: [N] int64, row in the window; from C on the channels of `further_rules`; -1 for metrics not read.
        event_us: [N] int64, UTC microseconds, in order of arrival.
        value: [N] float64, canonical unit.
        message: [N] int64, never decreasing; readings of one message arrive together.
        spec: what a window is.
        further_rules: rules of channels that belong on the grid but not into windows, such as the target.

    Returns:
        The grid of all closed steps, [C + further, S], and the rows of it at which a window ends.
    """
    if not len(event_us):
        return DeviceGrid(np.zeros(0, np.int64), np.zeros((len(spec.rules) + len(further_rules), 0), np.float32)), (
            np.zeros(0, np.int64)
        )
    step = event_us // spec.step_us
    first_step = int(step[message == message[0]].min())
    timely, watermark_us = on_time(event_us, message, spec)
    kept = np.flatnonzero(timely & (channel >= 0) & (step >= first_step) & (step < closed_before(watermark_us, spec)))
    kept = kept[first_of_each(channel[kept], event_us[kept])]
    rules = (*spec.rules, *further_rules)
    grid = to_grid(channel[kept], event_us[kept], value[kept], rules, spec.step_us)
    return grid, window_rows(grid, len(spec.rules), first_step, spec.length)


def cut(
    grid: DeviceGrid, rows: NDArray[np.int64], length: int, step_us: int, clock: bool = False
) -> NDArray[np.float32]:
    """Cut the windows that end at `rows` of the grid ([N], increasing), float32 [N, R, T].

    Args:
        grid: channels of a device, [C, S].
        rows: where windows end.
        length: T.
        step_us: grid step, microseconds.
        clock: whether a last row follows the channels: seconds since Monday 00:00 UTC at which each step begins. Whole
            seconds of a week are exact in float32.
    """
    windows = grid.windows(length, rows)
    if not clock:
        return windows
    steps = grid.steps[rows, None] + np.arange(1 - length, 1)
    seconds = (steps * step_us - MONDAY_US) % WEEK_US // 1_000_000
    return np.concatenate([windows, seconds.astype(np.float32)[:, None, :]], axis=1)


def window_hash(values: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a 64-bit BLAKE2b digest of each window ([N, C, T] float32 → [N] uint64), equal if all bits are."""
    data = np.ascontiguousarray(np.where(np.isnan(values), np.float32(np.nan), values), dtype="<f4")
    digests = b"".join(hashlib.blake2b(window.tobytes(), digest_size=HASH_BYTES).digest() for window in data)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


class _State(msgspec.Struct, frozen=True):
    """What a stream must remember, as plain bytes (little endian)."""

    watermark_us: int
    first_step: int | None
    next_step: int
    channel: bytes
    event_us: bytes
    value: bytes
    steps: bytes
    grid: bytes


class WindowStream:
    """The windows of one device as its readings arrive, in any batches."""

    def __init__(self, spec: WindowSpec) -> None:
        self._spec = spec
        self._watermark_us = NEVER_US
        self._first_step: int | None = None
        self._next_step = NEVER_US
        self._channel = np.zeros(0, dtype=np.int64)
        self._event_us = np.zeros(0, dtype=np.int64)
        self._value = np.zeros(0, dtype=np.float64)
        self._past = DeviceGrid(np.zeros(0, dtype=np.int64), np.zeros((len(spec.channels), 0), dtype=np.float32))

    def push(
        self,
        channel: NDArray[np.int64],
        event_us: NDArray[np.int64],
        value: NDArray[np.float64],
        message: NDArray[np.int64],
    ) -> Windows:
        """Take readings in order of arrival and return the windows that they complete.

        Args:
            channel: [N] int64, row in the window, -1 for metrics that it does not read (they move the watermark).
            event_us: [N] int64, UTC microseconds.
            value: [N] float64, canonical unit.
            message: [N] int64, never decreasing; readings of one message arrive together.
        """
        if not len(event_us):
            return self._none()
        if self._first_step is None:
            self._first_step = int(event_us[message == message[0]].min()) // self._spec.step_us
            self._next_step = self._first_step
        timely, self._watermark_us = on_time(event_us, message, self._spec, self._watermark_us)
        timely &= (channel >= 0) & (event_us // self._spec.step_us >= self._next_step)
        self._remember(channel[timely], event_us[timely], value[timely])
        return self._close()

    def state(self) -> bytes:
        """Return all that `restore` needs to go on, as msgpack."""
        return msgspec.msgpack.encode(
            _State(
                self._watermark_us,
                self._first_step,
                self._next_step,
                self._channel.astype("<i8").tobytes(),
                self._event_us.astype("<i8").tobytes(),
                self._value.astype("<f8").tobytes(),
                self._past.steps.astype("<i8").tobytes(),
                self._past.values.astype("<f4").tobytes(),
            )
        )

    @classmethod
    def restore(cls, spec: WindowSpec, state: bytes) -> "WindowStream":
        """Return the stream whose `state` this was; the specification must be the same.

        Raises:
            msgspec.DecodeError: the bytes are not a stream's state.
        """
        saved = msgspec.msgpack.decode(state, type=_State)
        stream = cls(spec)
        stream._watermark_us, stream._first_step, stream._next_step = (
            saved.watermark_us,
            saved.first_step,
            saved.next_step,
        )
        stream._channel = np.frombuffer(saved.channel, dtype="<i8").astype(np.int64)
        stream._event_us = np.frombuffer(saved.event_us, dtype="<i8").astype(np.int64)
        stream._value = np.frombuffer(saved.value, dtype="<f8").astype(np.float64)
        steps = np.frombuffer(saved.steps, dtype="<i8").astype(np.int64)
        grid = np.frombuffer(saved.grid, dtype="<f4").astype(np.float32).reshape(len(spec.channels), len(steps))
        stream._past = DeviceGrid(steps, grid)
        return stream

    def _remember(self, channel: NDArray[np.int64], event_us: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Add readings to the open steps; of a reading sent twice the first counts."""
        channel = np.append(self._channel, channel)
        event_us = np.append(self._event_us, event_us)
        value = np.append(self._value, value)
        first = first_of_each(channel, event_us)
        self._channel, self._event_us, self._value = channel[first], event_us[first], value[first]

    def _close(self) -> Windows:
        spec = self._spec
        until = closed_before(self._watermark_us, spec)
        done = self._event_us // spec.step_us < until
        self._next_step = max(self._next_step, until)
        if not done.any() or self._first_step is None:
            return self._none()
        fresh = to_grid(self._channel[done], self._event_us[done], self._value[done], spec.rules, spec.step_us)
        self._channel, self._event_us, self._value = self._channel[~done], self._event_us[~done], self._value[~done]
        grid = DeviceGrid(
            np.append(self._past.steps, fresh.steps), np.concatenate([self._past.values, fresh.values], axis=1)
        )
        rows = window_rows(grid, len(spec.channels), self._first_step, spec.length)
        rows = rows[rows >= len(self._past.steps)]
        recent = grid.steps > grid.steps[-1] - spec.length
        self._past = DeviceGrid(grid.steps[recent], grid.values[:, recent])
        values = cut(grid, rows, spec.length, spec.step_us, spec.clock)
        return Windows(grid.steps[rows] * spec.step_us, values)

    def _none(self) -> Windows:
        return Windows(np.zeros(0, dtype=np.int64), np.zeros((0, self._spec.rows, self._spec.length), dtype=np.float32))


def first_of_each(channel: NDArray[np.int64], event_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the first reading of each (channel, event time), in order of arrival ([K] int64)."""
    order = np.lexsort((event_us, channel))  # stable: equal keys stay in order of arrival
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(channel[order]) != 0) | (np.diff(event_us[order]) != 0)
    return np.sort(order[new])
