"""Where the window's last step lies in the day and in the week."""

from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned
from fieldloop.domain.features.columns import Columns

NAMES: Final = ("time.day_sin", "time.day_cos", "time.week_sin", "time.week_cos")
RESOLUTION_S: Final = 300
DAY_S: Final = 86_400
WEEK_S: Final = 7 * DAY_S


def calendar(window: Cleaned) -> list[Columns]:
    """Return sine and cosine of the time of day and of the week, UTC, to five minutes.

    Out of a table: the last digits of a runtime's sine depend on the machine, and on how many it computes at once.
    """
    if window.clock is None:
        raise ValueError("the family `calendar` needs windows with a clock")
    row = op.cast(op.div(window.clock, op.const(np.float32(RESOLUTION_S))), to=np.int64)
    return [Columns(NAMES, op.gather(op.const(_table()), row, axis=0))]


def _table() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[2016, 4]."""
    second = np.arange(0, WEEK_S, RESOLUTION_S)
    turns = 2 * np.pi * np.stack([second / DAY_S, second / WEEK_S])
    return np.stack([np.sin(turns), np.cos(turns)], axis=1).reshape(4, -1).T.copy()
