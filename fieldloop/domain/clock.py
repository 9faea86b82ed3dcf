"""Event times as devices write them, to UTC microseconds: whole columns at a time."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain import pattern
from fieldloop.domain.carry import Carry
from fieldloop.domain.columns import Coded, Column, Stamps, to_floats
from fieldloop.domain.profile import Clock
from fieldloop.domain.zone import local_to_utc_us

US_PER_UNIT = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1, "epoch_ns": 0.001, "payload": 1}
NOT_A_TIME = np.int64(np.iinfo(np.int64).min)  # marks what could not be read; the value of NumPy's NaT

_EARLIEST_US = -62_135_596_800_000_000  # the year 1: nothing earlier can be written as a date
_LATEST_US = 253_402_300_800_000_000  # the year 10000: nothing later can be written as a date
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSET_CHARS = 6  # ±hh:mm
_SECOND_CHARS = 19  # YYYY-MM-DDThh:mm:ss
_DIGIT_ZERO = ord("0")
_PARTS = ((1, 9999), (1, 12), (1, 31), (0, 23), (0, 59), (0, 59))  # year, month, day, hour, minute, second
_FIRST_PARTS = (1970, 1, 1, 0, 0, 0)  # of those that a device does not send


def event_times(
    clock: Clock,
    columns: Sequence[Column],
    devices: Sequence[str],
    arrival_us: NDArray[np.int64],
    cadence_us: int,
    sequence: NDArray[np.int64],
    carry: Carry,
) -> NDArray[np.int64]:
    """Return UTC microseconds ([N] int64), rounded as the clock says; `NOT_A_TIME` where a time cannot be read.

    Args:
        clock: how the device writes its clock. ISO 8601 needs an offset or `Z` where the clock has no zone: a local
            time without one is ambiguous.
        columns: one of [N] raw entries, one a part for `parts` and `strptime`, none for `arrival`. None where there is
            no entry. An `iso` clock takes `Stamps` too.
        devices: [N] whose records they are, in order of arrival.
        arrival_us: [N] int64, when they arrived, UTC.
        cadence_us: regular distance of two records of one device.
        sequence: [N] int64, place of their messages in the stream.
        carry: where the devices' clocks stood before them in an hour that comes twice; is brought up to date.
    """
    times, local = _read(clock, columns, arrival_us)
    if local.any():
        if clock.zone is None:
            times = np.where(local, NOT_A_TIME, times)
        else:
            rows = np.flatnonzero(local & (times != NOT_A_TIME))
            owners = [devices[row] for row in rows.tolist()]
            arrived, places = arrival_us[rows], sequence[rows]
            times[rows] = local_to_utc_us(clock.zone, times[rows], owners, arrived, cadence_us, places, carry)
    if clock.round_us:
        rounded = (times + clock.round_us // 2) // clock.round_us * clock.round_us
        times = np.where(times == NOT_A_TIME, times, rounded)
    return np.where(times < _EARLIEST_US, NOT_A_TIME, times) if times.min(initial=0) < _EARLIEST_US else times


def _read(
    clock: Clock, columns: Sequence[Column], arrival_us: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return microseconds ([N] int64) as they are written, and which of them are local times ([N] bool)."""
    if clock.kind == "parts":
        return _parts_us(columns), np.ones(len(arrival_us), dtype=np.bool_)
    if clock.kind == "strptime":
        return _patterned_us(clock.pattern, columns)
    if clock.kind == "iso":
        return _written_us(columns[0])
    if clock.kind == "arrival":
        times = arrival_us.copy()
    elif clock.kind == "elapsed":
        times = _epoch_us(columns[0], clock.unit_us, clock.start_us)
    else:
        times = _epoch_us(columns[0], US_PER_UNIT[clock.kind])
    return times, np.zeros(len(times), dtype=np.bool_)


def _written_us(column: Column) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return microseconds ([N] int64) of an `iso` clock's column, and which of them lack an offset ([N] bool)."""
    if isinstance(column, Stamps):
        return column.us.copy(), np.full(len(column), column.local)
    if isinstance(column, Coded):
        times, local = _iso_us([str(entry) for entry in column.entries])
        return np.append(times, NOT_A_TIME)[column.codes], np.append(local, False)[column.codes]
    return _iso_us(["" if entry is None else str(entry) for entry in column])


def _patterned_us(text: str, columns: Sequence[Column]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return microseconds ([N] int64) of texts by a pattern, and which of them lack an offset ([N] bool)."""
    parts = [["" if entry is None else str(entry).strip() for entry in column] for column in columns]
    written = [" ".join(each) for each in zip(*parts, strict=True)]
    entries = dict.fromkeys(written)
    times, local, known = pattern.parse(text, list(entries))
    code = {entry: number for number, entry in enumerate(entries)}
    codes = np.array([code[entry] for entry in written], dtype=np.int64)
    return np.where(known, times, NOT_A_TIME)[codes], local[codes]


def _epoch_us(entries: Column, unit_us: float, start_us: int = 0) -> NDArray[np.int64]:
    with np.errstate(over="ignore"):  # to infinity, which is no time
        numbers = to_floats(entries) * unit_us + start_us
    readable = np.abs(numbers) < _LATEST_US  # NaN is not
    if readable.all():
        return np.rint(numbers).astype(np.int64)
    return np.where(readable, np.rint(np.where(readable, numbers, 0)).astype(np.int64), NOT_A_TIME)


def _parts_us(columns: Sequence[Column]) -> NDArray[np.int64]:
    """Return microseconds ([N] int64) of times split into year, month, day and so on."""
    given = [to_floats(column) for column in columns]
    whole, proper = [], np.ones(len(columns[0]), dtype=np.bool_)
    for numbers, (lowest, highest), first in zip(given, _PARTS, _FIRST_PARTS, strict=False):
        fine = (numbers >= lowest) & (numbers <= highest) & (numbers == np.floor(numbers))
        proper &= fine
        whole.append(np.where(fine, numbers, first).astype(np.int64))
    whole += [np.full(len(proper), first) for first in _FIRST_PARTS[len(whole) :]]
    year, month, day, hour, minute, second = whole
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    proper &= days.astype("datetime64[M]") == months  # no 30 February
    seconds = days.astype(np.int64) * 86_400 + hour * 3_600 + minute * 60 + second
    return np.where(proper, seconds * 1_000_000, NOT_A_TIME)


def _iso_us(times: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return microseconds ([N] int64) of ISO 8601 times, and which of them lack an offset ([N] bool).

    Times written in one layout (`2014-01-01T01:00:00+01:00`, or without the offset) are read as columns of characters;
    anything else one by one.
    """
    text = _characters(times)
    seconds = None if text is None else _seconds(text)
    if text is not None and seconds is not None:
        offsets = _offset_seconds(text[:, _SECOND_CHARS:])
        if offsets is not None:
            local = np.full(len(times), text.shape[1] == _SECOND_CHARS)
            return (seconds - offsets) * 1_000_000, local
    singles = [_single(time) for time in times]
    return (
        np.array([us for us, _ in singles], dtype=np.int64),
        np.array([local for _, local in singles], dtype=np.bool_),
    )


def _characters(times: Sequence[str]) -> NDArray[np.uint8] | None:
    """Return the characters ([N, 19 or 25]) of times that have one of the two layouts' widths; None for others."""
    widths = {len(time) for time in times}
    if widths not in ({_SECOND_CHARS}, {_SECOND_CHARS + _OFFSET_CHARS}):
        return None
    width = widths.pop()
    try:
        return np.array(times, dtype=f"S{width}").view(np.uint8).reshape(-1, width)
    except UnicodeEncodeError:
        return None


def _seconds(text: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Return seconds since 1970 ([N] int64) of times that begin with YYYY-MM-DDThh:mm:ss; None where one does not."""
    if (text[:, [4, 7, 13, 16]] != np.frombuffer(b"--::", dtype=np.uint8)).any():
        return None
    try:
        seconds = np.ascontiguousarray(text[:, :_SECOND_CHARS]).view(f"S{_SECOND_CHARS}").astype("datetime64[s]")
    except ValueError:
        return None
    return seconds.reshape(-1).astype(np.int64)


def _offset_seconds(tail: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Return seconds ([N] int64) of offsets ±hh:mm, zeros where there are none; None where one is something else."""
    if not tail.shape[1]:
        return np.zeros(len(tail), dtype=np.int64)
    digits = tail[:, [1, 2, 4, 5]].astype(np.int64) - _DIGIT_ZERO
    signs = np.where(tail[:, 0] == ord("+"), 1, np.where(tail[:, 0] == ord("-"), -1, 0))
    hours, minutes = digits[:, 0] * 10 + digits[:, 1], digits[:, 2] * 10 + digits[:, 3]
    proper = ((digits >= 0) & (digits <= 9)).all(axis=1) & (signs != 0) & (hours < 24) & (minutes < 60)
    if not (proper & (tail[:, 3] == ord(":"))).all():
        return None
    return np.asarray(signs * (hours * 3600 + minutes * 60), dtype=np.int64)


def _single(time: str) -> tuple[int, bool]:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return int(NOT_A_TIME), False
    if moment.tzinfo is None:
        return (moment - _EPOCH.replace(tzinfo=None)) // timedelta(microseconds=1), True
    return (moment - _EPOCH) // timedelta(microseconds=1), False
