"""The frames that suites look at."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from expectations.frames import device_counts, device_frame, merge_counts, wide_frame
from expectations.profiles import compile_profile, read_profile

ROOT = Path(__file__).parents[2]
TURBINE = read_profile(ROOT, "senvion-mm82")
PROFILE = compile_profile(TURBINE)
START = datetime(2014, 1, 1, tzinfo=UTC)


def test_readings_become_a_row_a_device_and_time() -> None:
    """A metric without a reading is null, one that the profile does not know is left out."""
    wide = wide_frame(
        _readings([("a", "wind_speed", 0, 3.0), ("a", "pitch_angle", 0, 1.0), ("a", "noise", 0, 9.0)]), PROFILE
    )
    assert wide.columns == ["device", "event_time", *PROFILE.metrics()]
    assert wide.select("wind_speed", "pitch_angle", "active_power").rows() == [(3.0, 1.0, None)]


def test_a_reading_that_is_there_twice_makes_a_second_row() -> None:
    """Nothing hides a duplicate from the suite that looks for it."""
    wide = wide_frame(_readings([("a", "wind_speed", 0, 3.0), ("a", "wind_speed", 0, 4.0)]), PROFILE)
    assert wide.select("device", "wind_speed").sort("wind_speed").rows() == [("a", 3.0), ("a", 4.0)]


def test_a_devices_shares_are_its_own() -> None:
    """Completeness and plausibility are counted a device, not over all rows."""
    rows = [("a", "wind_speed", hour, 99.0 if hour < 2 else 5.0) for hour in range(8)]
    rows += [("a", "pitch_angle", hour, 1.0) for hour in range(4)] + [("b", "wind_speed", 0, 5.0)]
    frame = device_frame(device_counts(wide_frame(_readings(rows), PROFILE), TURBINE), TURBINE)
    shares = frame.select("device", "rows", "wind_speed_plausible", "pitch_angle_complete").rows()
    assert shares == [("a", 8, 0.75, 0.5), ("b", 1, 1.0, 0.0)]


def test_a_channel_is_judged_dead_only_over_a_long_time() -> None:
    """A turbine may well hold its nacelle for two days; a week without change is a dead sensor."""
    rows = [("short", "nacelle_angle", hour, 90.0) for hour in range(48)]
    rows += [("long", "nacelle_angle", hour, 90.0) for hour in range(200)]
    frame = device_frame(device_counts(wide_frame(_readings(rows), PROFILE), TURBINE), TURBINE)
    assert frame.select("device", "nacelle_angle_spread").rows() == [("long", 0.0), ("short", None)]


@settings(max_examples=50)
@given(cells=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(PROFILE.metrics()), st.integers(0, 400),
                                st.floats(-300, 300)), min_size=1, max_size=80),
       cuts=st.lists(st.integers(0, 400), max_size=5))  # fmt: skip
def test_however_readings_are_cut_devices_get_the_same_shares(
    cells: list[tuple[str, str, int, float]], cuts: list[int]
) -> None:
    """Chunks side by side in time, some without any reading, and duplicates in them."""
    readings = _readings(cells)
    edges = [0, *sorted(cuts), 401]
    hour = (pl.col("event_time") - pl.lit(START)).dt.total_hours()
    parts = [readings.filter(hour >= low, hour < high) for low, high in itertools.pairwise(edges)]
    wide = [wide_frame(part, PROFILE) for part in parts]
    merged = merge_counts([device_counts(one, TURBINE) for one in wide])
    whole = wide_frame(readings, PROFILE)
    assert sum(len(one) for one in wide) == len(whole)
    assert_frame_equal(
        device_frame(merged, TURBINE), device_frame(device_counts(whole, TURBINE), TURBINE), check_exact=True
    )


def _readings(rows: list[tuple[str, str, int, float]]) -> pl.DataFrame:
    timed = [(device, metric, START + timedelta(hours=hour), value) for device, metric, hour, value in rows]
    schema = {"device": pl.String, "metric": pl.String, "event_time": pl.Datetime("us", "UTC"), "value": pl.Float64}
    return pl.DataFrame(timed, schema=schema, orient="row")
