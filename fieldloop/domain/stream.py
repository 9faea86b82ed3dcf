"""The windows of one device as its readings arrive: bit for bit those that `windows.device_history` cuts at once.

Plain Python throughout: live, a message has a handful of readings, and a dozen NumPy calls on arrays so small cost ten
times what the loop does.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.grid import reduce_cell
from fieldloop.domain.windows import NEVER_US, Windows, WindowSpec, closed_before, with_clock

_NAN = float("nan")

Closed = tuple[list[int], list[NDArray[np.float32]]]  # steps, and the channels up to each, [C, T]


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
        self._kept = slice(0, spec.length - 1), slice(1, spec.length)  # what moves on by a step, to where and from

    def push_message(self, channel: list[int], event_us: list[int], value: list[float]) -> Closed:
        """Take the readings of one message and return the windows that they complete, for `gathered`.

        Args:
            channel: [N] row in the window, -1 for metrics that it does not read (they move the watermark).
            event_us: [N] UTC microseconds.
            value: [N] canonical unit.
        """
        if event_us:
            self._take(channel, event_us, value)
            if min(self._open, default=self._next_step) < self._next_step:
                return self._close()
        return [], []

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

    def _close(self) -> Closed:
        """Return each step that is closed and of whose past enough was seen, with the channels up to it."""
        ends, pasts = [], []
        for step in sorted([step for step in self._open if step < self._next_step]):
            self._advance(step, self._column(self._open.pop(step)))
            if self._first_step is not None and step - self._spec.seen + 1 > self._first_step:
                ends.append(step)
                pasts.append(self._past.copy())
        return ends, pasts

    def _advance(self, step: int, column: list[float]) -> None:
        """Move the past on to a step; the steps between have no reading."""
        gap = min(step - self._last_step, self._spec.length)
        if gap == 1:
            to, begin = self._kept
            self._past[:, to] = self._past[:, begin]
        else:
            self._past[:, : self._spec.length - gap] = self._past[:, gap:]
            self._past[:, self._spec.length - gap :] = np.nan
        self._past[:, -1] = column
        self._last_step = step

    def _column(self, readings: dict[tuple[int, int], float]) -> list[float]:
        """Return one value a channel of the readings of a step, [C], NaN where there is none."""
        cells: dict[int, list[tuple[int, float]]] = {}
        for (channel, event_us), value in readings.items():
            cells.setdefault(channel, []).append((event_us, value))
        column = [_NAN] * len(self._past)
        for channel, found in cells.items():
            values = [value for _, value in sorted(found)] if len(found) > 1 else [found[0][1]]
            column[channel] = reduce_cell(values, self._spec.rules[channel])
        return column


def gathered(spec: WindowSpec, steps: Sequence[int], pasts: Sequence[NDArray[np.float32]]) -> Windows:
    """Return windows that streams have closed, of one device or of many, each by its last step and its channels."""
    ends = np.array(steps, dtype=np.int64)
    values = np.array(pasts) if pasts else np.zeros((0, len(spec.channels), spec.length), dtype=np.float32)
    return Windows(ends * spec.step_us, with_clock(values, ends, spec.step_us) if spec.clock else values)
