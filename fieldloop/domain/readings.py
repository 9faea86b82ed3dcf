"""Messages as they arrive, the readings in them, and what is refused: columns, one entry a row.

A reading is (device, metric, event time, arrival time, value). Device and arrival time belong to the message, so the
columns of `Readings` point to it instead of repeating them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.carry import Carry


class Reason(StrEnum):
    """Why something went to quarantine."""

    TOO_LARGE = "payload too large"
    UNDECODABLE = "payload not decodable"
    UNKNOWN_DEVICE = "unknown device"
    WRONG_DEVICE = "wrong device"
    UNKNOWN_METRIC = "unknown metric"
    NO_BIRTH = "alias without a birth"
    UNKNOWN_UNIT = "unknown unit"
    WRONG_TYPE = "wrong type"
    NO_EVENT_TIME = "no event time"
    FUTURE = "time in the future"
    OUT_OF_RANGE = "value out of range"
    IN_DOUBT = "device in doubt"  # held until more of its messages have come
    SUSPENDED = "device suspended"  # until it is readmitted


@dataclass(frozen=True, eq=False)
class Named(Sequence[str]):
    """A column of texts of which few differ.

    Attributes:
        names: [K] the different ones.
        codes: [M] int32, index into `names`.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Named":
        """Return a column of texts; one that is `Named` already as it is."""
        if isinstance(texts, Named):
            return texts
        code = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        return cls(tuple(code), np.fromiter(map(code.__getitem__, texts), dtype=np.int32, count=len(texts)))

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[str]:
        return map(self.names.__getitem__, self.codes.tolist())

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> "Named": ...
    def __getitem__(self, row: int | slice) -> "str | Named":
        return Named(self.names, self.codes[row]) if isinstance(row, slice) else self.names[self.codes[row]]

    def take(self, rows: NDArray[np.int64]) -> "Named":
        """Return the texts at these rows."""
        return Named(self.names, self.codes[rows])


@dataclass(frozen=True, eq=False)
class Packed(Sequence[bytes]):
    """Payloads one behind another in one buffer.

    Attributes:
        buffer: all their bytes.
        offsets: [M + 1] int64, where each begins, and where the last ends.
    """

    buffer: bytes
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, payloads: Sequence[bytes]) -> "Packed":
        """Return payloads in one buffer; those that are already as they are."""
        if isinstance(payloads, Packed):
            return payloads
        offsets = np.zeros(len(payloads) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, payloads), dtype=np.int64, count=len(payloads)), out=offsets[1:])
        return cls(b"".join(payloads), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[bytes]:
        return self._slices(self.offsets[:-1], self.offsets[1:])

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> "Packed": ...
    def __getitem__(self, row: int | slice) -> "bytes | Packed":
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        row = range(len(self))[row]
        return self.buffer[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: NDArray[np.int64]) -> "Packed":
        """Return the payloads at these rows."""
        return Packed.of(list(self._slices(self.offsets[rows], self.offsets[rows + 1])))

    def _slices(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[bytes]:
        return (self.buffer[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True))


@dataclass(frozen=True)
class Messages:
    """A batch of messages in the order in which they arrived.

    Attributes:
        devices: [M] the sender by its authenticated topic, not by what the payload says.
        arrival_us: [M] int64, UTC microseconds, the broker's stamp.
        sequence: [M] int64, position in the source's stream, increasing.
        payloads: [M] raw bytes.
        carry: what earlier messages of the same devices have left behind; reading these adds to it.
    """

    devices: Sequence[str]
    arrival_us: NDArray[np.int64]
    sequence: NDArray[np.int64]
    payloads: Sequence[bytes]
    carry: Carry = field(default_factory=Carry)

    def take(self, rows: NDArray[np.int64]) -> "Messages":
        """Return the messages at these rows ([K] int64), in their order."""
        if len(rows) == len(self.sequence) and np.array_equal(rows, np.arange(len(rows))):
            return self
        return Messages(
            Named.of(self.devices).take(rows),
            self.arrival_us[rows],
            self.sequence[rows],
            Packed.of(self.payloads).take(rows),
            self.carry,
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
        value: the value that was out of range, canonical unit; None for all else.
        event_us: the event time that was read, however impossible, UTC microseconds; None where there was none.
    """

    message: int
    metric: str | None
    reason: Reason
    detail: str
    value: float | None = None
    event_us: int | None = None

    def at(self, message: int) -> "Reject":
        """Return the same of another row."""
        return replace(self, message=message)
