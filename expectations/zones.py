"""Time zones compiled to their changes, so that a gateway needs no zone database."""

import functools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fieldloop.domain.profile import Zone

FIRST_YEAR, LAST_YEAR = 1970, 2100  # before and after them the nearest offset holds
_DAY_S = 86_400


@functools.cache
def compile_zone(name: str) -> Zone:
    """Return a zone by its IANA name, such as `Europe/Paris`.

    Raises:
        ValueError: there is no such zone.
    """
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(f"unknown time zone `{name}`; expected an IANA name such as `Europe/Paris` or `UTC`") from exc
    days = range(_year_s(FIRST_YEAR), _year_s(LAST_YEAR), _DAY_S)
    offsets = [_offset_s(zone, day) for day in days]
    changes = [
        _change_s(zone, day, day + _DAY_S)
        for day, here, next_day in zip(days, offsets, offsets[1:], strict=False)
        if here != next_day
    ]
    return Zone(name, tuple(changes), (offsets[0], *(_offset_s(zone, change) for change in changes)))


def _year_s(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp())


def _offset_s(zone: ZoneInfo, moment_s: int) -> int:
    local = datetime.fromtimestamp(moment_s, tz=zone)
    return int(local.utcoffset().total_seconds())  # type: ignore[union-attr] # an aware time has an offset


def _change_s(zone: ZoneInfo, before_s: int, after_s: int) -> int:
    """Return the first second of the new offset, by halving the span in which it lies."""
    old = _offset_s(zone, before_s)
    while after_s - before_s > 1:
        middle = (before_s + after_s) // 2
        before_s, after_s = (middle, after_s) if _offset_s(zone, middle) == old else (before_s, middle)
    return after_s
