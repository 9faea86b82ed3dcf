"""The contract watch before rows of files: a device that changes its unit is set aside, and nothing of it is lost."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldloop.domain.readings import Reason
from fieldloop.domain.windows import OUT_OF_STREAM
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.collect import collect, preview
from tasks.quarantine import waiting
from tasks.readmission import readmit_devices, settle
from tests.tasks.sources import Workshop, workshop

FILES = """
kind: files
device: {RULE}
enrol: true
options: {path: "FOLDER/*.*", settle_s: 0}
"""
THERMOMETER = """
name: meter
description: A thermometer
format: json
clock: {kind: iso, field: at, zone: UTC}
cadence: 10 min
channels:
  - {metric: temperature, field: temp, source_unit: UNIT, unit: degC, range: [-60, 300]}
"""
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 144  # records

Write = Callable[[str, range, Sequence[float]], None]


@pytest.fixture
def shop(store: Settings, tmp_path: Path) -> Workshop:
    (tmp_path / "files").mkdir()
    made = workshop(store, tmp_path)
    made.profile(THERMOMETER.replace("UNIT", "degC"))
    return made


@pytest.fixture
def write(shop: Workshop) -> Write:
    """Write a file of records."""

    def file(name: str, steps: range, values: Sequence[float]) -> None:
        times = [f"{BEGIN + timedelta(minutes=10 * step):%Y-%m-%dT%H:%M:%SZ}" for step in steps]
        pl.DataFrame({"at": times, "temp": values}).write_csv(shop.folder / "files" / name)

    return file


def celsius(steps: range) -> list[float]:
    noise = np.random.default_rng(1).normal(0, 0.2, steps.stop)[steps.start :]
    return np.round(12 + 6 * np.sin(np.array(steps) * 2 * np.pi / DAY) + noise, 1).tolist()


def fahrenheit(steps: range) -> list[float]:
    return [round(1.8 * value + 32, 1) for value in celsius(steps)]


def declared(shop: Workshop, device: str, more: str = "watch: true\n") -> str:
    text = FILES.replace("RULE", f"name: {device}").replace("FOLDER", str(shop.folder / "files"))
    return shop.source(device, text + more)


def left(shop: Workshop, device: str) -> list[str]:
    rows = waiting(Lake(shop)).filter(pl.col("device") == device).sort("arrival_time").collect()
    return rows["reason"].to_list()


def test_a_device_whose_file_turns_to_fahrenheit_is_set_aside_and_lands_once_its_profile_is_mended(
    shop: Workshop, write: Write
) -> None:
    """Within one file, and over files: no changed row is stored; a mended profile brings them all, in their order."""
    source = declared(shop, "file-f")
    good, changed, more = range(20 * DAY), range(20 * DAY, 22 * DAY), range(22 * DAY, 23 * DAY)
    write("a.csv", range(22 * DAY), celsius(good) + fahrenheit(changed))
    began = datetime.now(UTC)
    assert preview(shop, source).refused == ()
    done = collect(shop, source)
    assert (done.readings, done.quarantined) == (len(good), len(changed))
    (standing,) = settle(shop, began).suspended
    assert (standing.device, standing.why()) == ("file-f", "temperature: as if sent in degF, not degC")
    write("b.csv", more, fahrenheit(more))
    assert collect(shop, source).readings == 0
    assert left(shop, "file-f") == [Reason.SUSPENDED] * (len(changed) + len(more))

    shop.profile(THERMOMETER.replace("UNIT", "degF"))
    settled = settle(shop, began)
    assert (settled.readmitted, settled.readings) == (("file-f",), len(changed) + len(more))
    assert left(shop, "file-f") == []
    stored = shop.stored("file-f")
    np.testing.assert_allclose(stored["value"].to_numpy(), celsius(range(23 * DAY)), atol=0.06)
    assert stored["sequence"].unique().to_list() == [OUT_OF_STREAM]
    later = range(23 * DAY, 24 * DAY)
    write("c.csv", later, fahrenheit(later))
    assert collect(shop, source).readings == len(later)


def test_rows_in_doubt_are_held_until_the_next_file_settles_it(shop: Workshop, write: Write) -> None:
    """A file ends in three rows that a change would explain; the next one says that it was none."""
    source = declared(shop, "file-d")
    known, glitch, after = range(10 * DAY), range(10 * DAY, 10 * DAY + 3), range(10 * DAY + 3, 11 * DAY)
    write("a.csv", range(10 * DAY + 3), celsius(known) + fahrenheit(glitch))
    assert collect(shop, source).readings == len(known)
    assert left(shop, "file-d") == [Reason.IN_DOUBT] * 3
    assert settle(shop, datetime.now(UTC)).released == ()
    write("b.csv", after, celsius(after))
    collect(shop, source)
    assert settle(shop, datetime.now(UTC)).released == ("file-d",)
    assert (len(shop.stored("file-d")), left(shop, "file-d")) == (11 * DAY, [])


def test_an_operator_readmits_and_an_archive_can_go_unwatched(shop: Workshop, write: Write) -> None:
    """Readmitted by hand, rows land as they are; a source that does not ask for the watch has nothing set aside."""
    good, changed = range(10 * DAY), range(10 * DAY, 12 * DAY)
    write("a.csv", range(12 * DAY), celsius(good) + fahrenheit(changed))
    assert collect(shop, declared(shop, "file-o")).readings == len(good)
    assert readmit_devices(shop, ["file-o"]).readings == len(changed)
    assert collect(shop, "file-o", again=True).duplicates == 12 * DAY
    unwatched = collect(shop, declared(shop, "file-u", ""))
    assert (unwatched.readings, unwatched.quarantined) == (12 * DAY, 0)
