"""Suites run by the real Great Expectations on small frames."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from expectations.frames import device_counts, device_frame
from expectations.inspection import Check, Inspection
from expectations.profiles import compile_profile, read_profile
from expectations.suites import Expected, device_expectations, reading_expectations

ROOT = Path(__file__).parents[2]
TURBINE = read_profile(ROOT, "senvion-mm82")
METRICS = compile_profile(TURBINE).metrics()
START = datetime(2014, 1, 1, tzinfo=UTC)
LATEST = datetime(2015, 1, 1, tzinfo=UTC)
KNOWN = ("a", "b")


def test_good_rows_meet_every_expectation(tmp_path: Path) -> None:
    """Both suites pass on rows as a healthy turbine sends them, and Data Docs are written."""
    inspection = Inspection(tmp_path, "run")
    checks = inspection.run_devices("devices", _devices(_rows()), device_expectations(TURBINE, KNOWN))
    checks += inspection.run_rows("readings", _rows(), reading_expectations(TURBINE, KNOWN, LATEST))
    pages = inspection.build_docs()
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 1 + 3 * 7 + 6 + 2 * 7 + 4
    assert (tmp_path / "index.html").is_file()
    assert "one row a device and time" in pages["readings"].read_text()


Spoil = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.mark.parametrize(
    ("spoil", "expectation", "column"),
    [
        (lambda rows: pl.concat([rows, rows.head(1)]), "expect_compound_columns_to_be_unique", ""),
        (
            lambda rows: rows.with_columns(pl.col("device").replace("b", "c")),
            "expect_column_values_to_be_in_set",
            "device",
        ),
        (lambda rows: _shifted(rows, 400), "expect_column_max_to_be_between", "event_time"),
        (lambda rows: _shifted(rows, -16_000), "expect_column_min_to_be_between", "event_time"),
        (lambda rows: _first(rows, 0.2, "wind_speed", None), "expect_column_values_to_not_be_null", "wind_speed"),
        (lambda rows: _first(rows, 0.02, "wind_speed", 75.0), "expect_column_values_to_be_between", "wind_speed"),
        (lambda rows: _first(rows, 0.005, "wind_speed", 101.0), "expect_column_values_to_be_between", "wind_speed"),
    ],
    ids=["twice", "stranger", "future", "unset-clock", "gaps", "implausible", "impossible"],
)
def test_what_is_wrong_with_the_rows_fails_its_expectation(
    tmp_path: Path, spoil: Spoil, expectation: str, column: str
) -> None:
    """Each kind of damage fails the one expectation that is there for it."""
    checks = Inspection(tmp_path, "run").run_rows(
        "readings", spoil(_rows()), reading_expectations(TURBINE, KNOWN, LATEST)
    )
    assert {(check.expectation, check.column) for check in checks if not check.passed} == {(expectation, column)}


def test_no_rows_at_all_fail(tmp_path: Path) -> None:
    """An empty frame is no good data set, though no row of it is bad."""
    checks = Inspection(tmp_path, "run").run_rows(
        "readings", _rows().head(0), reading_expectations(TURBINE, KNOWN, LATEST)
    )
    assert "at least one row" in {check.description for check in checks if not check.passed}


def test_a_few_rows_that_do_not_fit_are_tolerated(tmp_path: Path) -> None:
    """Half a percent of implausible values passes, and the check says how many there were."""
    rows = _first(_rows(), 0.005, "wind_speed", 75.0)
    checks = Inspection(tmp_path, "run").run_rows("readings", rows, reading_expectations(TURBINE, KNOWN, LATEST))
    assert all(check.passed for check in checks)
    assert "11 of 2,200 do not fit (0.5 %)" in {check.observed for check in checks}


def test_the_device_suite_names_the_bad_device_and_its_share(tmp_path: Path) -> None:
    """One device of two with a dead channel and gaps is found by name."""
    rows = _rows().with_columns(
        vane_position=pl.when(pl.col("device") == "b").then(0.0).otherwise("vane_position"),
        active_power=pl.when(pl.col("device") == "a").then("active_power"),
    )
    checks = _device_checks(tmp_path, rows)
    failed = {check.column: check.devices for check in checks if not check.passed}
    assert failed == {"vane_position_spread": (("b", "0"),), "active_power_complete": (("b", "0"),)}


def test_an_expectation_that_cannot_be_evaluated_fails_and_says_so(tmp_path: Path) -> None:
    """A column that is not there is no pass."""
    wanted = [Expected("expect_column_values_to_not_be_null", "nowhere", "nowhere to be there")]
    (check,) = Inspection(tmp_path, "run").run_rows("readings", _rows(), wanted)
    assert not check.passed
    assert "could not be evaluated" in check.observed
    assert "nowhere" in check.observed


def _device_checks(folder: Path, rows: pl.DataFrame) -> tuple[Check, ...]:
    return Inspection(folder, "run").run_devices("devices", _devices(rows), device_expectations(TURBINE, KNOWN))


def _devices(rows: pl.DataFrame) -> pl.DataFrame:
    return device_frame(device_counts(rows, TURBINE), TURBINE)


def _rows() -> pl.DataFrame:
    """Two devices, 1,100 ten-minute rows each, every channel moving within its plausible range."""
    times = pl.DataFrame({"event_time": [START + timedelta(minutes=10 * step) for step in range(1100)]})
    rows = pl.DataFrame({"device": list(KNOWN)}).join(times.cast(pl.Datetime("us", "UTC")), how="cross")
    moving = pl.int_range(pl.len()) % 17 + 1.0
    return rows.with_columns(moving.alias(metric) for metric in METRICS)


def _shifted(rows: pl.DataFrame, days: int) -> pl.DataFrame:
    return rows.with_columns(pl.col("event_time") + pl.duration(days=days))


def _first(rows: pl.DataFrame, share: float, metric: str, value: float | None) -> pl.DataFrame:
    """Spoil the first rows of a metric."""
    spoiled = pl.int_range(pl.len()) < share * pl.len()
    return rows.with_columns(pl.when(spoiled).then(pl.lit(value)).otherwise(metric).alias(metric))
