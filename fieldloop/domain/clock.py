"""Event times as devices write them, to UTC microseconds: whole columns at a time."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.profile import ClockKind

US_PER_UNIT = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
NOT_A_TIME = np.int64(np.iinfo(np.int64).min)  # marks what could not be read; the value of NumPy's NaT

_LATEST_US = 253_402_300_800_000_000  # the year 10000: nothing later can be written as a date
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSET_CHARS = 6  # ±hh:mm
_SECOND_CHARS = 19  # YYYY-MM-DDThh:mm:ss
_DIGIT_ZERO = ord("0")


def to_utc_us(kind: ClockKind, raw: Sequence[str | float]) -> NDArray[np.int64]:
    """Return UTC microseconds ([N] int64); `NOT_A_TIME` where an entry cannot be read.

    Args:
        kind: how the device writes its clock. ISO 8601 needs an offset or `Z`: a local time without one is ambiguous.
        raw: [N] strings for `iso`, numbers for the others.
    """
    if kind == "iso":
        return iso_to_utc_us([str(entry) for entry in raw])
    numbers = np.asarray(raw, dtype=np.float64) * US_PER_UNIT[kind]
    readable = np.isfinite(numbers) & (np.abs(numbers) < _LATEST_US)
    return np.where(readable, np.rint(np.where(readable, numbers, 0)).astype(np.int64), NOT_A_TIME)


def iso_to_utc_us(times: Sequence[str]) -> NDArray[np.int64]:
    """Return UTC microseconds ([N] int64) of ISO 8601 strings with offsets; `NOT_A_TIME` where one cannot be read.

    Times written in one layout (`2014-01-01T01:00:00+01:00`, as a device does) are read as columns of characters;
    anything else one by one.
    """
    column = _one_layout(times)
    if column is not None:
        return column
    return np.array([_single(time) for time in times], dtype=np.int64)


def _one_layout(times: Sequence[str]) -> NDArray[np.int64] | None:
    """Read a column whose entries all look like YYYY-MM-DDThh:mm:ss±hh:mm; None where they do not."""
    width = _SECOND_CHARS + _OFFSET_CHARS
    if not times or any(len(time) != width for time in times):
        return None
    try:
        text = np.array(times, dtype=f"S{width}")
        local = text.astype(f"S{_SECOND_CHARS}").astype("datetime64[s]").astype(np.int64)
    except (UnicodeEncodeError, ValueError):
        return None
    tail = text.view(np.uint8).reshape(-1, width)[:, _SECOND_CHARS:].astype(np.int64)
    digits = tail[:, [1, 2, 4, 5]] - _DIGIT_ZERO
    signs = np.where(tail[:, 0] == ord("+"), 1, np.where(tail[:, 0] == ord("-"), -1, 0))
    hours, minutes = digits[:, 0] * 10 + digits[:, 1], digits[:, 2] * 10 + digits[:, 3]
    proper = ((digits >= 0) & (digits <= 9)).all(axis=1) & (signs != 0) & (hours < 24) & (minutes < 60)
    if not (proper & (tail[:, 3] == ord(":"))).all():
        return None
    return np.asarray((local - signs * (hours * 3600 + minutes * 60)) * 1_000_000, dtype=np.int64)


def _single(time: str) -> int:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return int(NOT_A_TIME)
    if moment.tzinfo is None:
        return int(NOT_A_TIME)
    return (moment - _EPOCH) // timedelta(microseconds=1)
