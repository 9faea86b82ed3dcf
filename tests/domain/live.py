"""Windows as an agent cuts them, message by message."""

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.stream import WindowStream, gathered
from fieldloop.domain.windows import Windows, WindowSpec


def pushed(
    stream: WindowStream,
    spec: WindowSpec,
    channel: NDArray[np.int64],
    event_us: NDArray[np.int64],
    value: NDArray[np.float64],
    message: NDArray[np.int64],
) -> Windows:
    """Return the windows that the readings of messages complete, each argument [N]."""
    steps: list[int] = []
    pasts: list[NDArray[np.float32]] = []
    for rows in np.split(np.arange(len(message)), np.flatnonzero(np.diff(message)) + 1):
        closed = stream.push_message(channel[rows].tolist(), event_us[rows].tolist(), value[rows].tolist())
        steps += closed[0]
        pasts += closed[1]
    return gathered(spec, steps, pasts)
