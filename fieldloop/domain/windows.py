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
OUT_OF_STREAM = 0  # message of readings that came from files, tables or services in place of the broker's stream


class WindowSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model reads.

    Attributes:
        channels: [C] canonical metric names, in the order of the window's rows.
        rules: [C] how several readings within a step become one value.
        step_us: grid step, microseconds.
        length: T, steps in a window.
        grace_us: how long a step stays open behind the watermark, microseconds.
        clock: whether a last row follows the channels: seconds since Monday 00:00 UTC at which each step begins.
        least: steps since the device was first seen after which it has windows, missing what came before; 0 for all.
    """

    channels: tuple[str, ...]
    rules: tuple[GridRule, ...]
    step_us: int
    length: int
    grace_us: int = 0
    clock: bool = False
    least: int = 0

    @property
    def seen(self) -> int:
        """Steps that must have been seen of a window."""
        return self.least or self.length

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


def window_rows(grid: DeviceGrid, inputs: int, first_step: int, seen: int) -> NDArray[np.int64]:
    """Return the rows of the grid at which a window ends: a step with an input reading, and enough of its past seen.

    Args:
        grid: the device's grid; its first `inputs` rows are the window's channels.
        inputs: C.
        first_step: the first step in which the device was seen.
        seen: how many steps must have been, the last one included.
    """
    reported = ~np.isnan(grid.values[:inputs]).all(axis=0)
    return np.flatnonzero(reported & (grid.steps - seen + 1 > first_step))


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
        message: [N] int64, never decreasing; readings of one message arrive together. `OUT_OF_STREAM` are those
            that no gateway follows live: they are never late, and make no other reading late.
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
    streamed = message > OUT_OF_STREAM
    first = ~streamed | np.isin(message, message[streamed][:1])  # of the stream the first message, of the rest all
    first_step = int(step[first].min())
    timely = ~streamed
    timely[streamed], watermark_us = on_time(event_us[streamed], message[streamed], spec)
    watermark_us = max(watermark_us, int(event_us.max()))
    kept = np.flatnonzero(timely & (channel >= 0) & (step >= first_step) & (step < closed_before(watermark_us, spec)))
    kept = kept[first_of_each(channel[kept], event_us[kept])]
    rules = (*spec.rules, *further_rules)
    grid = to_grid(channel[kept], event_us[kept], value[kept], rules, spec.step_us)
    return grid, window_rows(grid, len(spec.rules), first_step, spec.seen)


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
    return with_clock(windows, grid.steps[rows], step_us)


def with_clock(windows: NDArray[np.float32], ends: NDArray[np.int64], step_us: int) -> NDArray[np.float32]:
    """Add the row of the clock to windows float32 [N, C, T] whose last steps are `ends` ([N])."""
    steps = ends[:, None] + np.arange(1 - windows.shape[2], 1)
    seconds = (steps * step_us - MONDAY_US) % WEEK_US // 1_000_000
    return np.concatenate([windows, seconds.astype(np.float32)[:, None, :]], axis=1)


def window_hash(values: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a 64-bit BLAKE2b digest of each window ([N, C, T] float32 → [N] uint64), equal if all bits are."""
    missing = np.isnan(values)
    data = np.where(missing, np.float32(np.nan), values) if missing.any() else values  # of NaN there are many
    raw, size = memoryview(data.astype("<f4", copy=False).tobytes()), data[:1].size * 4
    places = range(0, len(data) * size, size)
    digests = b"".join([hashlib.blake2b(raw[at : at + size], digest_size=HASH_BYTES).digest() for at in places])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def first_of_each(channel: NDArray[np.int64], event_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the first reading of each (channel, event time), in order of arrival ([K] int64)."""
    order = np.lexsort((event_us, channel))  # stable: equal keys stay in order of arrival
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(channel[order]) != 0) | (np.diff(event_us[order]) != 0)
    return np.sort(order[new])
