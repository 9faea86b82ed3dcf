"""The windows of one device as its readings arrive: bit for bit those that `windows.device_history` cuts at once.

Plain Python throughout: live, a message has a handful of readings, and a dozen NumPy calls on arrays so small cost ten
times what the loop does.
"""

from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.grid import reduce_cell
from fieldloop.domain.windows import NEVER_US, Windows, WindowSpec, closed_before, with_clock

_NAN = float("nan")


class _State(msgspec.Struct, frozen=True, array_like=True):
    """What a stream must remember; `past` is float32, little endian."""

    watermark_us: int
    first_step: int | None
    next_step: int
    last_step: int
    readings: list[tuple[int, int, float]]
    past: bytes


class WindowStream:
    """The windows of one device as its readings arrive, in any batches."""

    def __init__(self, spec: WindowSpec) -> None:
        self._spec = spec
        self._watermark_us = NEVER_US
        self._first_step: int | None = None
        self._next_step = NEVER_US  # the first that is open
        self._open: dict[int, dict[tuple[int, int], float]] = {}  # step: (channel, event_us): value, as they came
        self._last_step = NEVER_US  # the latest that is closed and has a reading
        self._past = np.full((len(spec.channels), spec.length), np.nan, dtype=np.float32)  # the steps up to it

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
        borders = [0, *(np.flatnonzero(message[1:] != message[:-1]) + 1).tolist(), len(message)]
        channels, events, values = channel.tolist(), event_us.tolist(), value.tolist()
        for begin, end in pairwise(borders):
            if end > begin:
                self._take(channels[begin:end], events[begin:end], values[begin:end])
        return self._close()

    def push_message(self, channel: list[int], event_us: list[int], value: list[float]) -> Windows | None:
        """Take the readings of one message; see `push`. None where they complete no window."""
        if event_us:
            self._take(channel, event_us, value)
            if min(self._open, default=self._next_step) < self._next_step:
                windows = self._close()
                return windows if len(windows.end_us) else None
        return None

    def state(self) -> bytes:
        """Return all that `restore` needs to go on, as msgpack."""
        readings = [(c, e, v) for step in self._open.values() for (c, e), v in step.items()]
        past = self._past.astype("<f4", copy=False).tobytes()
        return msgspec.msgpack.encode(
            _State(self._watermark_us, self._first_step, self._next_step, self._last_step, readings, past)
        )

    @classmethod
    def restore(cls, spec: WindowSpec, state: bytes) -> "WindowStream":
        """Return the stream whose `state` this was; the specification must be the same.

        Raises:
            msgspec.DecodeError: the bytes are not a stream's state.
            ValueError: it is the state of windows of another size.
        """
        saved = msgspec.msgpack.decode(state, type=_State)
        stream = cls(spec)
        stream._watermark_us, stream._first_step = saved.watermark_us, saved.first_step
        stream._next_step, stream._last_step = saved.next_step, saved.last_step
        for channel, event_us, value in saved.readings:
            stream._open.setdefault(event_us // spec.step_us, {})[channel, event_us] = value
        stream._past[:] = np.frombuffer(saved.past, dtype="<f4").reshape(stream._past.shape)
        return stream

    def _take(self, channel: list[int], event_us: list[int], value: list[float]) -> None:
        """Add one message's readings to the open steps; of a reading sent twice the first counts."""
        spec = self._spec
        if self._first_step is None:
            self._first_step = self._next_step = min(event_us) // spec.step_us
        for c, e, v in zip(channel, event_us, value, strict=True):
            step = e // spec.step_us
            if c >= 0 and step >= self._next_step:
                self._open.setdefault(step, {}).setdefault((c, e), v)
        self._watermark_us = max(self._watermark_us, *event_us)
        self._next_step = max(self._next_step, closed_before(self._watermark_us, spec))

    def _close(self) -> Windows:
        """Return a window for each step that is closed and whose past is fully seen."""
        spec = self._spec
        ends, pasts = [], []
        for step in sorted(step for step in self._open if step < self._next_step):
            self._advance(step, self._column(self._open.pop(step)))
            if self._first_step is not None and step - spec.length + 1 > self._first_step:
                ends.append(step)
                pasts.append(self._past.copy())
        steps = np.array(ends, dtype=np.int64)
        values = np.stack(pasts) if pasts else np.zeros((0, *self._past.shape), dtype=np.float32)
        return Windows(steps * spec.step_us, with_clock(values, steps, spec.step_us) if spec.clock else values)

    def _advance(self, step: int, column: NDArray[np.float32]) -> None:
        """Move the past on to a step; the steps between have no reading."""
        gap = min(step - self._last_step, self._spec.length)
        self._past[:, : self._spec.length - gap] = self._past[:, gap:]
        self._past[:, self._spec.length - gap :] = np.nan
        self._past[:, -1] = column
        self._last_step = step

    def _column(self, readings: dict[tuple[int, int], float]) -> NDArray[np.float32]:
        """Return one value a channel of the readings of a step, [C] float32, NaN where there is none."""
        cells: dict[int, list[tuple[int, float]]] = {}
        for (channel, event_us), value in readings.items():
            cells.setdefault(channel, []).append((event_us, value))
        column = [_NAN] * len(self._past)
        for channel, found in cells.items():
            column[channel] = reduce_cell([value for _, value in sorted(found)], self._spec.rules[channel])
        return np.array(column, dtype=np.float64).astype(np.float32)
