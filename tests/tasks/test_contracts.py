"""The contract watch before acquisition: what breaks a contract is set aside, what may is held, and all comes back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from fieldloop.cli.device import app
from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.standing import By, standings
from tasks.acquire import acquire
from tasks.quarantine import Choice, replay, waiting
from tasks.readmission import describe_settled, readmit_devices, settle, suspend_devices

PROFILE = """\
name: NAME
description: A thermometer
format: json
clock: {field: t, kind: CLOCK}
cadence: CADENCE
channels:
  - {metric: temperature, field: temp, source_unit: UNIT, unit: STORED, range: [-60, TOP]}
"""
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=10)
HOUR = 6
LEARNT = 9 * 24 * HOUR  # nine days

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


class Workshop(Settings):
    """The data plane's settings, with profiles from a folder of the test's own."""

    folder: Path

    @property
    def root(self) -> Path:
        """The folder with `expectations/profiles`."""
        return self.folder

    def promise(self, name: str, unit: str = "degC", **changes: str) -> None:
        """Write a profile."""
        path = self.folder / "expectations" / "profiles" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        said = {"name": name, "unit": unit, "stored": "degC", "top": "300", "clock": "epoch_s", "cadence": "10 min"}
        text = PROFILE
        for word, meaning in (said | changes).items():
            text = text.replace(word.upper(), meaning)
        path.write_text(text)


@pytest.fixture
def workshop(data_plane: Settings, tmp_path: Path) -> Workshop:
    """The data plane with profiles of the test's own."""
    return Workshop.model_validate({**data_plane.model_dump(), "folder": tmp_path})


def celsius(steps: range, seed: int = 0) -> list[float]:
    """Temperatures as a day has them, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.2, steps.stop)
    return [round(12 + 6 * float(np.sin(step * 2 * np.pi / (24 * HOUR))) + float(noise[step]), 1) for step in steps]


def fahrenheit(steps: range) -> list[float]:
    return [round(1.8 * value + 32, 1) for value in celsius(steps)]


def sent(device: str, steps: range, values: list[float]) -> list[tuple[str, bytes]]:
    """One message an hour."""
    records = [
        {"t": int((BEGIN + step * STEP).timestamp()), "temp": value} for step, value in zip(steps, values, strict=True)
    ]
    hours = [records[first : first + HOUR] for first in range(0, len(records), HOUR)]
    return [(f"devices.{device}.readings", json.dumps(hour).encode()) for hour in hours]


def stored(settings: Settings, device: str) -> pl.DataFrame:
    return Lake(settings).scan("readings").filter(pl.col("device") == device).sort("event_time").collect()


def left(settings: Settings, device: str) -> list[str]:
    rows = waiting(Lake(settings)).filter(pl.col("device") == device).sort("sequence").collect()
    return rows["reason"].to_list()


def learnt(workshop: Workshop, publish: Publish, device: str, profile: str) -> None:
    """Enrol a device, and let it send degrees Celsius for some days."""
    workshop.promise(profile)
    fleet.add_devices(Lake(workshop), [device], profile)
    publish(sent(device, range(LEARNT), celsius(range(LEARNT))))
    acquire(workshop)
    assert len(stored(workshop, device)) == LEARNT


def test_a_device_that_turns_to_fahrenheit_lands_nothing_until_it_is_readmitted(
    workshop: Workshop, publish: Publish
) -> None:
    """Its first changed message is refused already, with its bytes; a mended profile brings the backlog, converted."""
    learnt(workshop, publish, "F1", "thermo-f")
    began = datetime.now(UTC)
    good, changed = range(LEARNT, LEARNT + 12), range(LEARNT + 12, LEARNT + 72)
    publish(sent("F1", good, celsius(good)) + sent("F1", changed, fahrenheit(changed)))
    acquire(workshop)
    assert len(stored(workshop, "F1")) == LEARNT + 12
    assert left(workshop, "F1") == [Reason.SUSPENDED] * 10
    settled = settle(workshop, began)
    (standing,) = (each for each in settled.suspended if each.device == "F1")
    assert standing.why() == "temperature: as if sent in degF, not degC"
    assert "F1 | temperature: as if sent in degF" in describe_settled(settled)

    later = range(LEARNT + 72, LEARNT + 84)
    publish(sent("F1", later, fahrenheit(later)))
    acquire(workshop)
    replay(workshop, Choice(device="F1"))
    assert left(workshop, "F1") == [Reason.SUSPENDED] * 12  # a replay lets nothing in while it is set aside
    assert CliRunner().invoke(app, ["list", "--suspended"], env=workshop.environment()).output.count("F1") == 1

    workshop.promise("thermo-f", top="301")  # mends nothing: the backlog is judged by what came before it
    assert settle(workshop, began).readings == 0
    assert left(workshop, "F1") == [Reason.SUSPENDED] * 12
    workshop.promise("thermo-f", "degF")
    settled = settle(workshop, began)
    assert (settled.readmitted, settled.readings) == (("F1",), 72)
    assert left(workshop, "F1") == []
    values = stored(workshop, "F1")["value"].to_numpy()
    np.testing.assert_allclose(values, celsius(range(LEARNT + 84)), atol=0.06)
    more = range(LEARNT + 84, LEARNT + 120)
    publish(sent("F1", more, fahrenheit(more)))
    acquire(workshop)
    assert len(stored(workshop, "F1")) == LEARNT + 120


def test_what_is_in_doubt_is_held_and_released_once_it_has_passed(workshop: Workshop, publish: Publish) -> None:
    """A jump that a change would explain is held, over runs; where the values come back, all of it lands."""
    learnt(workshop, publish, "D1", "thermo-d")
    glitch, after = range(LEARNT, LEARNT + 3), range(LEARNT + 3, LEARNT + 3 + 48)
    publish(sent("D1", glitch, fahrenheit(glitch)))
    acquire(workshop)
    assert left(workshop, "D1") == [Reason.IN_DOUBT]
    assert settle(workshop, datetime.now(UTC)).released == ()
    publish(sent("D1", after, celsius(after)))
    acquire(workshop)
    settled = settle(workshop, datetime.now(UTC))
    assert settled.released == ("D1",)
    assert left(workshop, "D1") == []
    assert len(stored(workshop, "D1")) == LEARNT + 51


def test_an_operator_readmits_and_the_device_is_learnt_anew(workshop: Workshop, publish: Publish) -> None:
    """Set aside by hand, then readmitted: the backlog lands, and what was learnt before does not count any more."""
    learnt(workshop, publish, "O1", "thermo-o")
    with pytest.raises(StoreError, match="not set aside"):
        readmit_devices(workshop, ["O1"])
    with pytest.raises(StoreError, match="not enrolled"):
        suspend_devices(workshop, ["O9"], "stranger")
    suspend_devices(workshop, ["O1"], "sensor moved")
    moved = range(LEARNT, LEARNT + 60)
    publish(sent("O1", moved, fahrenheit(moved)))
    acquire(workshop)
    assert left(workshop, "O1") == [Reason.SUSPENDED] * 10
    assert readmit_devices(workshop, ["O1"]).readings == 60
    assert standings(Lake(workshop))["O1"].by == By.OPERATOR
    more = range(LEARNT + 60, LEARNT + 120)
    publish(sent("O1", more, fahrenheit(more)))
    acquire(workshop)
    assert (len(stored(workshop, "O1")), left(workshop, "O1")) == (LEARNT + 120, [])


@dataclass(frozen=True)
class Firmware:
    """A change that an update brings, and the mended profile under which what is sent is right again.

    Attributes:
        says: what a person is told to suspect.
        mended: what the profile says then.
        promised: what it said before, where that is not degrees Celsius.
        every: time between two records.
        ticks: of the device's clock in a second.
        divided: by what a value is.
    """

    says: str
    mended: dict[str, str]
    promised: dict[str, str] = field(default_factory=dict)
    every: timedelta = STEP
    ticks: int = 1
    divided: int = 1

    def records(self, times: Sequence[datetime], values: Sequence[float]) -> list[dict[str, float]]:
        """What the device sends at these times."""
        sent = zip(times, values, strict=True)
        return [
            {"t": self.ticks * int(time.timestamp()), "temp": round(value / self.divided, 6)} for time, value in sent
        ]


UPDATES = {
    "U1": Firmware(
        "temperature: as if sent in kW, not W",
        {"unit": "kW", "stored": "W"},
        {"unit": "W", "stored": "W"},
        divided=1000,
    ),
    "U2": Firmware("as if it now counted a thousand times what it did", {"clock": "epoch_ms"}, ticks=1000),
    "U3": Firmware("as if a record came every 63.2 s, not every 600 s", {"cadence": "1 min"}, every=STEP / 10),
}


def test_scale_clock_and_cadence_are_watched_like_units(workshop: Workshop, publish: Publish) -> None:
    """W to kW, s to ms, a record a minute: nothing sent since lands; a mended profile brings it all, as it is meant."""
    before, values, began = range(LEARNT), celsius(range(LEARNT, LEARNT + 10 * HOUR)), datetime.now(UTC)
    times = {
        device: [BEGIN + (LEARNT - 1) * STEP + number * change.every for number in range(1, 1 + len(values))]
        for device, change in UPDATES.items()
    }
    for device, change in UPDATES.items():
        workshop.promise(f"thermo-{device.lower()}", **change.promised)
        fleet.add_devices(Lake(workshop), [device], f"thermo-{device.lower()}")
        publish(sent(device, before, celsius(before)))
    acquire(workshop)
    for device, change in UPDATES.items():
        records = change.records(times[device], values)
        hours = [json.dumps(records[first : first + HOUR]).encode() for first in range(0, len(records), HOUR)]
        publish([(f"devices.{device}.readings", hour) for hour in hours])
    acquire(workshop)
    aside = {each.device: each.why() for each in settle(workshop, began).suspended}
    for device, change in UPDATES.items():
        assert (len(stored(workshop, device)), left(workshop, device)) == (LEARNT, [Reason.SUSPENDED] * 10)
        assert aside[device] == change.says
        workshop.promise(f"thermo-{device.lower()}", **change.mended)

    settled = settle(workshop, began)
    assert (settled.readmitted, settled.readings) == (tuple(UPDATES), 3 * len(values))
    for device in UPDATES:
        landed = stored(workshop, device)[LEARNT:]
        assert (landed["event_time"].to_list(), left(workshop, device)) == (times[device], [])
        assert landed["value"].to_list() == pytest.approx(values)
