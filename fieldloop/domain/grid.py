"""A device's channels on regular time steps, and windows cut from them.

Only steps in which the device reported are kept, so a device that was silent for a year costs nothing. Windows come out
as if every step were there: missing steps are NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fieldloop.domain.profile import GridRule

_REDUCE: Mapping[GridRule, np.ufunc] = MappingProxyType(
    {"mean": np.add, "sum": np.add, "min": np.minimum, "max": np.maximum}
)


@dataclass(frozen=True)
class DeviceGrid:
    """One device's grid.

    Attributes:
        steps: [S] int64, step numbers (event time // step length), strictly increasing, each with at least one value.
        values: [C, S] float32, NaN where a channel has no reading in a step.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float32]

    def windows(self, length: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the windows that end at `rows` of the grid ([K], increasing): [K, C, length], oldest step first."""
        if not len(rows):
            return np.zeros((0, len(self.values), length), dtype=np.float32)
        first = int(np.searchsorted(self.steps, self.steps[rows[0]] - length, side="right"))
        dense, ends = self._dense(first, rows, length)
        starts = ends[rows - first] - length + 1
        return np.ascontiguousarray(sliding_window_view(dense, length, axis=1)[:, starts].transpose(1, 0, 2))

    def _dense(self, first: int, rows: NDArray[np.int64], length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Values of the steps from `first` on with those that are missing between, and where each of them is now.

        Before the first step, and between two that lie further apart, `length` steps stand for all that are missing.
        """
        seen = slice(first, int(rows[-1]) + 1)
        steps, values = self.steps[seen], self.values[:, seen]
        if steps[-1] - steps[0] == len(steps) - 1:
            before = length - 1 - (int(rows[0]) - first)
            missing = np.full((len(values), before), np.nan, dtype=np.float32)
            return np.concatenate([missing, values], axis=1) if before else values, np.arange(len(steps)) + before
        gaps = np.minimum(np.diff(steps, prepend=steps[0] - length), length)
        ends = np.cumsum(gaps) - 1
        dense = np.full((len(values), int(ends[-1]) + 1), np.nan, dtype=np.float32)
        dense[:, ends] = values
        return dense, ends


def to_grid(
    channel: NDArray[np.int64],
    event_us: NDArray[np.int64],
    value: NDArray[np.float64],
    rules: Sequence[GridRule],
    step_us: int,
) -> DeviceGrid:
    """Put one device's readings onto its grid.

    Args:
        channel: [N] int64, 0 to C-1.
        event_us: [N] int64, UTC microseconds; (channel, event time) must be distinct.
        value: [N] float64.
        rules: [C] how several readings within a step become one value.
        step_us: step length, microseconds.
    """
    step = event_us // step_us
    steps, column = np.unique(step, return_inverse=True)
    values = np.full((len(rules), len(steps)), np.nan, dtype=np.float64)
    order = np.lexsort((event_us, column, channel))
    cell = channel[order] * len(steps) + column[order]
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    if len(starts):
        rule_of = np.array(rules)[channel[order][starts]]
        for rule in set(rules):
            _fill(values, rule, rule_of == rule, value[order], starts, cell)
    return DeviceGrid(steps, values.astype(np.float32))


def reduce_cell(values: list[float], rule: GridRule) -> float:
    """Return what `to_grid` makes of the readings of one cell, in order of their time: the same additions."""
    if rule == "count":
        return float(len(values))
    if rule == "last" or len(values) == 1:
        return values[-1]
    reduced = float(_REDUCE[rule].reduceat(np.array(values), [0])[0])
    return reduced / len(values) if rule == "mean" else reduced


def _fill(
    values: NDArray[np.float64],
    rule: GridRule,
    chosen: NDArray[np.bool_],
    ordered: NDArray[np.float64],
    starts: NDArray[np.int64],
    cell: NDArray[np.int64],
) -> None:
    """Reduce the segments of `ordered` that `starts` begins, by one rule, into the cells it is for."""
    ends = np.append(starts[1:], len(ordered))
    match rule:
        case "last":
            reduced = ordered[ends - 1]
        case "mean":
            reduced = np.add.reduceat(ordered, starts) / (ends - starts)
        case "min":
            reduced = np.minimum.reduceat(ordered, starts)
        case "max":
            reduced = np.maximum.reduceat(ordered, starts)
        case "sum":
            reduced = np.add.reduceat(ordered, starts)
        case "count":
            reduced = (ends - starts).astype(np.float64)
    values.reshape(-1)[cell[starts[chosen]]] = reduced[chosen]
