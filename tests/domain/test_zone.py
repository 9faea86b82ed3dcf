"""Local times to UTC: as the standard library has it, and the hour that autumn repeats."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expectations.zones import compile_zone
from fieldloop.domain.carry import Carry
from fieldloop.domain.zone import local_to_utc_us

EPOCH = datetime(1970, 1, 1)
MINUTE_US = 60_000_000
AUTUMN = datetime(2015, 10, 25)  # in Paris, 02:00 to 03:00 comes twice: at 00:00 and at 01:00 UTC
YEARS_LATER = datetime(2020, 1, 1)


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def utc_minutes(
    local: list[str],
    arrival: list[datetime],
    cadence_min: int = 10,
    devices: str = "",
    sequence: list[int] | None = None,
    carry: Carry | None = None,
) -> list[int]:
    """Return minutes after midnight UTC of times of the night in which Paris sets its clocks back."""
    times = [us(AUTUMN) + (int(t[:2]) * 60 + int(t[3:])) * MINUTE_US for t in local]
    got = local_to_utc_us(
        compile_zone("Europe/Paris"),
        np.array(times),
        list(devices) or ["d"] * len(local),
        np.array([us(each) for each in arrival]),
        cadence_min * MINUTE_US,
        np.array(sequence or range(1, len(local) + 1)),
        carry or Carry(),
    )
    return ((got - us(AUTUMN)) // MINUTE_US).tolist()


@given(
    st.sampled_from(["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca"]),
    st.lists(st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)), min_size=1, max_size=30),
)
def test_a_backlog_without_order_equals_the_first_moment_of_the_standard_library(name, times):
    """Also for the hour that spring skips; each from a device of its own, so that order says nothing."""
    zone = ZoneInfo(name)
    count = len(times)
    got = local_to_utc_us(
        compile_zone(name),
        np.array([us(time) for time in times]),
        [str(number) for number in range(count)],
        np.full(count, us(datetime(2200, 1, 1))),
        MINUTE_US,
        np.arange(count),
        Carry(),
    )
    expected = [us(time.replace(tzinfo=zone).astimezone(UTC).replace(tzinfo=None)) for time in times]
    assert got.tolist() == expected


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_live_readings_are_settled_by_their_arrival_however_they_are_batched(batch):
    """Both passes, a reading every ten minutes, each two minutes under way."""
    moments = [AUTUMN + timedelta(minutes=10 * step) for step in range(20)]
    zone = ZoneInfo("Europe/Paris")
    local = [f"{moment.replace(tzinfo=UTC).astimezone(zone):%H:%M}" for moment in moments]
    arrival = [moment + timedelta(minutes=2) for moment in moments]
    got = [
        minute
        for start in range(0, 20, batch)
        for minute in utc_minutes(local[start : start + batch], arrival[start : start + batch])
    ]
    assert got == [10 * step for step in range(20)]


@pytest.mark.parametrize("cadence", [5, 10, 20, 30, 60])
def test_in_a_backlog_the_step_back_begins_the_second_pass(cadence):
    """Years later, only the order tells."""
    steps = range(0, 240, cadence)
    local = [f"{2 + (step if step < 60 else step - 60) // 60:02d}:{step % 60:02d}" for step in steps]
    assert utc_minutes(local, [YEARS_LATER] * len(local), cadence) == list(steps)


def test_devices_are_settled_apart():
    """Two devices whose readings alternate: only one of them steps back."""
    local = ["02:00", "01:50", "02:50", "02:00", "02:10", "02:10"]
    assert utc_minutes(local, [YEARS_LATER] * 6, devices="ababab") == [0, -10, 50, 0, 70, 10]
    assert utc_minutes(["02:00", "02:50", "02:00"], [YEARS_LATER] * 3, devices="aba") == [0, 50, 0]


def test_an_hour_in_one_message_is_the_first_pass_when_its_end_cannot_be_the_second():
    """Sent at 03:00 of the first pass: its first reading might just be of the second, its last cannot."""
    local = ["02:00", "02:10", "02:20", "02:30", "02:40", "02:50"]
    one = [1] * 6
    assert utc_minutes(local, [AUTUMN + timedelta(hours=1)] * 6, sequence=one) == [0, 10, 20, 30, 40, 50]
    assert utc_minutes(local, [AUTUMN + timedelta(hours=2)] * 6, sequence=one) == [60, 70, 80, 90, 100, 110]
