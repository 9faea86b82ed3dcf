"""Messages as they arrive, the readings in them, and what is refused: columns, one entry a row.

A reading is (device, metric, event time, arrival time, value). Device and arrival time belong to the message, so the
columns of `Readings` point to it instead of repeating them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Reason(StrEnum):
    """Why something went to quarantine."""

    TOO_LARGE = "payload too large"
    UNDECODABLE = "payload not decodable"
    UNKNOWN_DEVICE = "unknown device"
    WRONG_DEVICE = "wrong device"
    UNKNOWN_METRIC = "unknown metric"
    UNKNOWN_UNIT = "unknown unit"
    WRONG_TYPE = "wrong type"
    NO_EVENT_TIME = "no event time"
    FUTURE = "time in the future"
    OUT_OF_RANGE = "value out of range"


@dataclass(frozen=True)
class Messages:
    """A batch of messages in the order in which they arrived.

    Attributes:
        devices: [M] the sender by its authenticated topic, not by what the payload says.
        arrival_us: [M] int64, UTC microseconds, the broker's stamp.
        sequence: [M] int64, position in the source's stream, increasing.
        payloads: [M] raw bytes.
    """

    devices: Sequence[str]
    arrival_us: NDArray[np.int64]
    sequence: NDArray[np.int64]
    payloads: Sequence[bytes]

    def take(self, rows: NDArray[np.int64]) -> "Messages":
        """Return the messages at these rows ([K] int64), in their order."""
        return Messages(
            [self.devices[row] for row in rows],
            self.arrival_us[rows],
            self.sequence[rows],
            [self.payloads[row] for row in rows],
        )


@dataclass(frozen=True)
class Readings:
    """Accepted readings of devices of one profile, in order of arrival.

    Attributes:
        message: [N] int64, row of the message in its batch, never decreasing.
        metric: [N] int16, index into the profile's channels.
        event_us: [N] int64, UTC microseconds.
        value: [N] float64, canonical unit, finite.
    """

    message: NDArray[np.int64]
    metric: NDArray[np.int16]
    event_us: NDArray[np.int64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.message)


@dataclass(frozen=True)
class Reject:
    """One thing that was refused: a whole message, a record of it, or a single value.

    Attributes:
        message: row of the message in its batch.
        metric: canonical metric or the payload's own field name; None where the whole message or record is refused.
        reason: the class of the trouble.
        detail: what was expected, what was got.
    """

    message: int
    metric: str | None
    reason: Reason
    detail: str
