"""Event times to UTC microseconds."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.carry import Carry
from fieldloop.domain.clock import NOT_A_TIME, event_times
from fieldloop.domain.profile import Clock, Zone

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ISO = Clock("t", "iso")
BEIJING = Zone("Asia/Shanghai", (), (8 * 3600,))
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=offsets)


def read(clock: Clock, *columns: list[object]) -> list[int]:
    count = len(columns[0])
    return event_times(clock, columns, ["d"] * count, np.full(count, 7), 1, np.arange(count), Carry()).tolist()


@given(st.lists(moments.map(lambda moment: moment.replace(microsecond=0)), min_size=1, max_size=20))
def test_column_of_one_layout_equals_the_standard_library(times):
    """Columns of characters give what `datetime` gives, mixed offsets included."""
    got = read(ISO, [time.isoformat() for time in times])
    assert got == [(time - EPOCH) // timedelta(microseconds=1) for time in times]


@given(st.lists(moments, min_size=1, max_size=20))
def test_mixed_layouts_equal_the_standard_library(times):
    """Fractions of a second come and go; every entry is still read."""
    got = read(ISO, [time.isoformat() for time in times])
    assert got == [(time - EPOCH) // timedelta(microseconds=1) for time in times]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2015-01-01T00:00:00",
        "2015-01-01T00:00+01",
        "2015-02-30T00:00:00+01:00",
        "2015-01-01T00:00:00+0é:00",
        "2015-01-01T00:00:00*01:00",
    ],
)
def test_unreadable_time_spoils_no_other(text):
    """An entry that cannot be read is marked, its neighbours are read; an hour's offset alone is ISO too."""
    first, bad, last = read(ISO, ["2015-01-01T01:00:00+01:00", text, "2015-01-01T00:00:00+00:00"])
    assert first == last == 1_420_070_400_000_000
    assert bad in (NOT_A_TIME, 1_420_066_800_000_000)


def test_local_times_of_a_zone_stand_beside_times_with_their_own_offset():
    """The zone is for those that have no offset."""
    got = read(Clock("t", "iso", zone=BEIJING), ["2015-01-01 08:00:00", "2015-01-01T00:00:00Z", None, "2015-01-01"])
    assert got == [1_420_070_400_000_000, 1_420_070_400_000_000, NOT_A_TIME, 1_420_041_600_000_000]


def test_a_column_of_local_times_is_read_as_one():
    """Both layouts of it, with `T` or a space."""
    got = read(Clock("t", "iso", zone=BEIJING), ["2015-01-01 08:00:00", "2015-01-01T08:00:01"])
    assert got == [1_420_070_400_000_000, 1_420_070_401_000_000]


def test_epochs_of_all_units_agree():
    """Seconds, milliseconds and microseconds name the same moment, as texts too; absurd numbers name none."""
    units = [("epoch_s", 10**9), ("epoch_ms", 10**6), ("epoch_us", 10**3), ("epoch_ns", 1)]
    for kind, number in [(kind, 1_420_070_400_250_000_000 / unit) for kind, unit in units]:
        assert read(Clock("t", kind), [number, str(number)]) == [1_420_070_400_250_000] * 2
    assert set(read(Clock("t", "epoch_s"), [np.inf, np.nan, 1e300, None, "soon", 10**400])) == {int(NOT_A_TIME)}


@pytest.mark.parametrize(
    ("clock", "before", "first"),
    [
        (Clock("t", "epoch_s"), -2e11, -62_135_596_800),
        (Clock("t", "epoch_ms"), -2e14, -62_135_596_800_000),
        (ISO, "0001-01-01T00:00:00+00:01", "0001-01-01T00:00:00+00:00"),
        (ISO, "0000-12-31T23:59:59+00:00", "0001-01-01T00:00:00+00:00"),
        (Clock("t", "epoch_s", round_us=86_400_000_000), -62_135_683_200, -62_135_596_800),
    ],
)
def test_a_time_before_the_year_one_is_none(clock, before, first):
    """No date can be written for it, and a table with such a row could be read by nobody."""
    assert read(clock, [before, first]) == [NOT_A_TIME, -62_135_596_800_000_000]


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), min_size=1, max_size=20))
def test_split_times_equal_the_standard_library(times):
    """Year, month, day and hour from four columns, as numbers or texts."""
    clock = Clock("", "parts", ("y", "m", "d", "h"), BEIJING)
    got = read(
        clock, [t.year for t in times], [str(t.month) for t in times], [t.day for t in times], [t.hour for t in times]
    )
    whole = [t.replace(minute=0, second=0, microsecond=0, tzinfo=timezone(timedelta(hours=8))) for t in times]
    assert got == [(time - EPOCH) // timedelta(microseconds=1) for time in whole]


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), min_size=1, max_size=20))
def test_times_by_a_pattern_equal_the_standard_library(times):
    """In columns of characters, with names of months, and in two columns of which one has no leading zeros."""
    whole = [t.replace(second=0, microsecond=0, tzinfo=timezone(timedelta(hours=8))) for t in times]
    wanted = [(time - EPOCH) // timedelta(microseconds=1) for time in whole]
    for pattern in ("%d/%m/%Y %H:%M", "%b %d %Y, %I:%M %p"):
        clock = Clock("t", "strptime", zone=BEIJING, pattern=pattern)
        assert read(clock, [f"{t:{pattern.replace('%Y', f'{t.year:04}')}}" for t in times]) == wanted
    split = Clock("", "strptime", ("date", "time"), BEIJING, "%d/%m/%Y %H:%M")
    assert read(split, [f"{t.day}/{t.month}/{t.year}" for t in times], [f" {t:%H:%M}" for t in times]) == wanted


@pytest.mark.parametrize(
    "text", ["", "30/02/2015 00:00", "01/13/2015 00:00", "01/01/2015 24:00", "01-01-2015 00:00", None]
)
def test_a_time_against_the_pattern_is_marked(text):
    """The others are read; a pattern with an offset needs no zone."""
    clock = Clock("t", "strptime", zone=Zone("UTC", (), (0,)), pattern="%d/%m/%Y %H:%M")
    assert read(clock, [text, "01/01/2015 00:00"]) == [NOT_A_TIME, 1_420_070_400_000_000]
    offset = Clock("t", "strptime", pattern="%d/%m/%Y %H:%M %z")
    assert read(offset, [text, "01/01/2015 08:00 +0800"]) == [NOT_A_TIME, 1_420_070_400_000_000]


def test_times_that_tremble_are_rounded():
    """To the nearest multiple; what is no time stays none."""
    clock = Clock("t", "epoch_s", round_us=60_000_000)
    assert read(clock, [59, 60, 61, 90, None]) == [60_000_000, 60_000_000, 60_000_000, 120_000_000, NOT_A_TIME]


def test_what_has_elapsed_counts_from_the_start():
    """Cycles of an hour, as numbers or texts."""
    clock = Clock("cycle", "elapsed", start_us=1_420_070_400_000_000, unit_us=3_600_000_000)
    assert read(clock, [0, "1", 1.5, None]) == [
        1_420_070_400_000_000,
        1_420_074_000_000_000,
        1_420_075_800_000_000,
        NOT_A_TIME,
    ]


@pytest.mark.parametrize(
    "parts", [(2015, 2, 30), (2015, 13, 1), (2015, 1, 0), (2015, 1.5, 1), (None, 1, 1), ("x", 1, 1)]
)
def test_a_day_that_is_none_is_marked(parts):
    """No 30 February, no month 13, and nothing missing."""
    columns = [[part, good] for part, good in zip(parts, (2015, 1, 1), strict=True)]
    assert read(Clock("", "parts", ("y", "m", "d"), Zone("UTC", (), (0,))), *columns) == [
        NOT_A_TIME,
        1_420_070_400_000_000,
    ]


def test_a_device_without_a_clock_has_the_time_of_arrival():
    """The broker's stamp."""
    found = event_times(Clock("", "arrival"), (), ["d", "d"], np.array([5, 6]), 1, np.arange(2), Carry())
    assert found.tolist() == [5, 6]
