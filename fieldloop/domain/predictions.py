"""The message in which a target sends predictions: columns as bytes, the rows of a device side by side."""

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.errors import PayloadError


class Predictions(msgspec.Struct, frozen=True):
    """Predictions by one release, a row a window.

    Attributes:
        target: who scored.
        release: digest of the release.
        devices: whose windows, each with its number of rows.
        end_us: int64 little-endian, the windows' last step, microseconds since the epoch, UTC.
        value: float32 little-endian, in the unit of the release.
        window_hash: uint64 little-endian, `windows.window_hash` of what was scored.
    """

    target: str
    release: str
    devices: tuple[tuple[str, int], ...]
    end_us: bytes
    value: bytes
    window_hash: bytes

    def owners(self) -> list[str]:
        """Return the device of each row."""
        return [device for device, rows in self.devices for _ in range(rows)]

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint64]]:
        """Return end_us int64 [N], value float32 [N] and window_hash uint64 [N]."""
        return (
            np.frombuffer(self.end_us, "<i8").astype(np.int64, copy=False),
            np.frombuffer(self.value, "<f4").astype(np.float32, copy=False),
            np.frombuffer(self.window_hash, "<u8").astype(np.uint64, copy=False),
        )


def pack(
    target: str,
    release: str,
    devices: Sequence[tuple[str, int]],
    end_us: NDArray[np.int64],
    value: NDArray[np.float32],
    window_hash: NDArray[np.uint64],
) -> bytes:
    """Encode the rows (int64, float32 and uint64, all [N]) of devices, each with its number of rows, as one message."""
    ends, values = end_us.astype("<i8", copy=False).tobytes(), value.astype("<f4", copy=False).tobytes()
    hashes = window_hash.astype("<u8", copy=False).tobytes()
    return msgspec.msgpack.encode(Predictions(target, release, tuple(devices), ends, values, hashes))


def unpack(payload: bytes) -> Predictions:
    """Decode a message.

    Raises:
        PayloadError: it is none, or its columns differ in length.
    """
    try:
        message = msgspec.msgpack.decode(payload, type=Predictions)
        lengths = {len(column) for column in message.columns()} | {sum(max(rows, 0) for _, rows in message.devices)}
    except (msgspec.MsgspecError, ValueError) as exc:
        raise PayloadError(f"not a message of predictions: {exc}") from exc
    if len(lengths) != 1:
        raise PayloadError(f"predictions of {message.target}: expected columns of one length, got {sorted(lengths)}")
    return message


def message_id(payload: bytes) -> str:
    """Return the id by which the broker knows a repeated message: the same rows give the same id."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
