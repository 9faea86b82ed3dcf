"""Times written by a pattern of `strptime`, such as `%d/%m/%Y %H:%M:%S`: whole columns where all are of one width."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

_US: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1)
_DIRECTIVE: Final = re.compile(r"%(.)")
_DIGITS: Final = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}  # what columns of characters are read by
_ZERO: Final = ord("0")


def parse(pattern: str, times: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Read times.

    Returns:
        [N] int64 microseconds since 1970 (UTC where they have an offset, `%z`), [N] bool which of them are local times,
        [N] bool which could be read at all.
    """
    local = np.full(len(times), "%z" not in pattern)
    quick = _columns(pattern, times)
    if quick is not None:
        return quick, local, np.ones(len(times), dtype=np.bool_)
    read = [_single(pattern, time) for time in times]
    known = np.array([us is not None for us in read], dtype=np.bool_)
    return np.array([us or 0 for us in read], dtype=np.int64), local, known


def check(pattern: str) -> None:
    """Refuse a pattern that `strptime` does not know or that names no day.

    Raises:
        ValueError: naming what is wrong.
    """
    now = datetime(2024, 5, 17, 13, 14, 15, 160_000, UTC)
    try:
        datetime.strptime(now.strftime(pattern), pattern)
    except ValueError as exc:
        raise ValueError(f"not a pattern of strptime: {exc}") from exc
    named = set(_DIRECTIVE.findall(pattern))
    day = "j" in named or ("d" in named and named & set("mbB"))
    if not named & set("cx") and not (day and named & set("Yy")):
        raise ValueError(f"expected a pattern with year, month and day, such as `%d/%m/%Y %H:%M`, got `{pattern}`")


def _single(pattern: str, time: str) -> int | None:
    try:
        moment = datetime.strptime(time.strip(), pattern)
    except ValueError:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return (moment - _EPOCH) // _US


def _columns(pattern: str, times: Sequence[str]) -> NDArray[np.int64] | None:
    """Read times of digits that all have the pattern's full width; None where one is written otherwise."""
    places, width = _places(pattern)
    if not times or places is None or any(len(time) != width for time in times):
        return None
    try:
        text = np.array(times, dtype=f"S{width}").view(np.uint8).reshape(-1, width)
    except UnicodeEncodeError:
        return None
    found = {name: _number(text[:, begin : begin + _DIGITS[name]]) for name, begin in places.items()}
    between = [place for place in range(width) if not any(b <= place < b + _DIGITS[n] for n, b in places.items())]
    like = np.frombuffer(_blank(pattern).encode(), dtype=np.uint8)
    if any((column < 0).any() for column in found.values()) or (text[:, between] != like[between]).any():
        return None
    months = ((found["Y"] - 1970) * 12 + found["m"] - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (found["d"] - 1)
    hour, minute, second = (found.get(name, np.zeros(len(times), np.int64)) for name in "HMS")
    proper = (days.astype("datetime64[M]") == months) & (found["Y"] >= 1) & (found["m"] >= 1) & (found["m"] <= 12)
    if not (proper & (hour < 24) & (minute < 60) & (second < 60)).all():
        return None
    return (days.astype(np.int64) * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000_000


def _places(pattern: str) -> tuple[dict[str, int] | None, int]:
    """Where each directive's digits begin, and the whole width; None where one is not of digits of a fixed width."""
    names = _DIRECTIVE.findall(pattern)
    if set(names) - set(_DIGITS) or len(set(names)) < len(names) or not {"Y", "m", "d"} <= set(names):
        return None, 0
    if not pattern.isascii():
        return None, 0
    places, shift = {}, 0
    for found in _DIRECTIVE.finditer(pattern):
        places[found[1]] = found.start() + shift
        shift += _DIGITS[found[1]] - 2
    return places, len(pattern) + shift


def _blank(pattern: str) -> str:
    """The pattern with a digit in the place of each that it stands for."""
    return _DIRECTIVE.sub(lambda found: "0" * _DIGITS[found[1]], pattern)


def _number(digits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[N] int64, below 0 where a character is no digit."""
    values = digits.astype(np.int64) - _ZERO
    numbers = values @ (10 ** np.arange(digits.shape[1])[::-1])
    return np.where(((values >= 0) & (values <= 9)).all(axis=1), numbers, -1)
