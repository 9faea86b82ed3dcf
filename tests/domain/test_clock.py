"""Event times to UTC microseconds."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.clock import NOT_A_TIME, iso_to_utc_us, to_utc_us

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=offsets)


@given(st.lists(moments.map(lambda moment: moment.replace(microsecond=0)), min_size=1, max_size=20))
def test_column_of_one_layout_equals_the_standard_library(times):
    """Columns of characters give what `datetime` gives, mixed offsets included."""
    got = iso_to_utc_us([time.isoformat() for time in times])
    assert got.tolist() == [(time - EPOCH) // timedelta(microseconds=1) for time in times]


@given(st.lists(moments, min_size=1, max_size=20))
def test_mixed_layouts_equal_the_standard_library(times):
    """Fractions of a second come and go; every entry is still read."""
    got = iso_to_utc_us([time.isoformat() for time in times])
    assert got.tolist() == [(time - EPOCH) // timedelta(microseconds=1) for time in times]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2015-01-01T00:00:00",
        "2015-02-30T00:00:00+01:00",
        "2015-01-01T00:00:00+0é:00",
        "2015-01-01T00:00:00*01:00",
    ],
)
def test_unreadable_time_spoils_no_other(text):
    """An entry that cannot be read is marked, its neighbours are read."""
    first, bad, last = iso_to_utc_us(["2015-01-01T01:00:00+01:00", text, "2015-01-01T00:00:00+00:00"])
    assert first == last == 1_420_070_400_000_000
    assert bad == NOT_A_TIME


def test_epochs_of_all_units_agree():
    """Seconds, milliseconds and microseconds name the same moment; infinities and absurd numbers name none."""
    for kind, number in [("epoch_s", 1420070400.25), ("epoch_ms", 1420070400250), ("epoch_us", 1420070400250000)]:
        assert to_utc_us(kind, [number]).tolist() == [1_420_070_400_250_000]
    assert (to_utc_us("epoch_s", [np.inf, np.nan, 1e300]) == NOT_A_TIME).all()
