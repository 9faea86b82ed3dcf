"""Validation through the real lake, Great Expectations and report bucket."""

import re
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from expectations.profiles import load_profile
from fieldloop.domain.errors import DocumentError, ValidationError
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.unjudged import Span, find_new, read_chunks
from tasks.validate import enter, judge, require_passed, unchanged
from tasks.verdict import ValidateResult, Verdict, describe, describe_unchanged

ROOT = Path(__file__).parents[2]
METRICS = load_profile(ROOT, "senvion-mm82").metrics()
START = datetime(2014, 1, 1, tzinfo=UTC)
ROWS = 200  # ten-minute rows of one device in one batch


class Workshop(Settings):
    """Settings whose repository is a folder of the test, so that a profile can be changed."""

    folder: Path

    @property
    def root(self) -> Path:
        """The folder with `expectations/profiles`."""
        return self.folder


@dataclass(frozen=True)
class Fleet:
    """A profile of this test alone, and the devices under it, in the session's lake."""

    settings: Workshop
    profile: str
    devices: tuple[str, ...]

    def send(self, sequence: int, spoiled: Mapping[str, Mapping[str, float | None]] | None = None) -> None:
        """Land a batch of every device at a stream position; a spoiled device's metrics hold one value or none."""
        frames = [self._batch(device, sequence, (spoiled or {}).get(device, {})) for device in self.devices]
        Lake(self.settings).append("readings", pl.concat(frames))

    def run(self, run_id: str, devices: list[str] | None = None) -> ValidateResult:
        """Do what the flow does."""
        new = find_new(self.settings, self.profile, devices, run_id)
        if not new.spans:
            return unchanged(new)
        verdict = judge(self.settings, new)
        require_passed(verdict)
        return enter(self.settings, new, verdict)

    def rows(self) -> pl.DataFrame:
        """Return this fleet's outcomes, oldest first."""
        table = Lake(self.settings).scan("validations").filter(pl.col("device").is_in(self.devices))
        return table.sort("validated_at", "device").collect()

    def change(self, found: str, put: str) -> None:
        """Change the profile's text."""
        path = self.settings.folder / "expectations" / "profiles" / f"{self.profile}.yaml"
        path.write_text(path.read_text().replace(found, put))

    def _batch(self, device: str, sequence: int, spoiled: Mapping[str, float | None]) -> pl.DataFrame:
        first = START + timedelta(minutes=10 * ROWS * sequence)
        rows = [
            (device, metric, first + timedelta(minutes=10 * step), first, value, sequence, 0, 2014)
            for step in range(ROWS)
            for metric in METRICS
            if (value := spoiled.get(metric, step % 17 + 1.0)) is not None
        ]
        return pl.DataFrame(rows, schema=SCHEMAS["readings"], orient="row")


@pytest.fixture
def turbines(store: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Fleet:
    """Four enrolled devices under a profile that bears the test's name."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    folder = tmp_path / "expectations" / "profiles"
    folder.mkdir(parents=True)
    text = (ROOT / "expectations" / "profiles" / "senvion-mm82.yaml").read_text()
    (folder / f"{name}.yaml").write_text(text.replace("name: senvion-mm82", f"name: {name}"))
    settings = Workshop.model_validate({**store.model_dump(), "folder": tmp_path})
    devices = tuple(f"{name}-{number}" for number in range(4))
    fleet.add_devices(Lake(settings), devices, name)
    return Fleet(settings, name, devices)


def test_good_readings_pass_and_are_entered(turbines: Fleet) -> None:
    """Every expectation is met, and each device's position is kept with the report's address."""
    turbines.send(1)
    result = turbines.run("good")
    assert (result.passed, result.rows, result.readings) == (result.of, 4 * ROWS, 4 * ROWS * 7)
    assert (result.devices, result.set_aside) == (turbines.devices, ())
    rows = turbines.rows().select("run_id", "device", "passed", "last_sequence", "reason", "report_url").rows()
    assert rows == [("good", device, True, 1, "", result.report_url) for device in turbines.devices]


def test_one_bad_device_is_set_aside_and_the_rest_goes_on(turbines: Fleet) -> None:
    """A broken outdoor sensor takes its turbine out, with a reason that a person understands."""
    bad, *good = turbines.devices
    turbines.send(1, {bad: {"outdoor_temperature": -273.2}})
    result = turbines.run("one-bad")
    assert result.devices == tuple(good)
    (refused,) = result.set_aside
    assert refused.device == bad
    assert refused.reason == (
        "expected outdoor_temperature within -30 to 45 degC in at least 0.99 of the values, got 0"
    )
    assert turbines.rows().filter(~pl.col("passed"))["reason"].to_list() == [refused.reason]
    assert result.passed == result.of - 1


def test_a_device_without_a_channel_is_set_aside(turbines: Fleet) -> None:
    """Completeness is asked of each device by itself."""
    turbines.send(1, {turbines.devices[2]: {"active_power": None}})
    (refused,) = turbines.run("gap").set_aside
    assert refused.reason == "expected active_power to have a value in at least 0.9 of the rows, got 0"


def test_a_data_set_that_fails_as_a_whole_stops_the_line(turbines: Fleet) -> None:
    """With three of four devices bad nothing is entered, and the next run judges the same readings again."""
    spoiled = {device: {"wind_speed": 99.0} for device in turbines.devices[:3]}
    turbines.send(1, spoiled)
    for run_id in ("bad", "bad-again"):
        with pytest.raises(ValidationError, match=r"3 of 4 devices .* fail, at least 0.5 .*wind_speed within 0 to 50"):
            turbines.run(run_id)
    assert turbines.rows().height == 0


def test_a_reading_that_is_twice_in_the_lake_stops_the_line(turbines: Fleet) -> None:
    """No device is to blame for a duplicate; the reason names the expectation."""
    turbines.send(1)
    turbines.send(1)
    with pytest.raises(
        ValidationError, match=r"fail as a whole \(expected one row a device and time, got 1,600 of 1,600"
    ):
        turbines.run("twice")


def test_the_chunks_in_which_readings_are_read_change_nothing(turbines: Fleet) -> None:
    """One chunk or nine: the same verdict, check by check, also where a reading is there twice."""
    turbines.send(1, {turbines.devices[1]: {"wind_speed": 99.0}})
    turbines.send(1)
    turbines.send(2)
    new = find_new(turbines.settings, turbines.profile, None, "chunks")
    whole, cut = (judge(turbines.settings, new, chunk_readings=most) for most in (10**9, 2000))
    assert len(list(read_chunks(Lake(turbines.settings), new, 2000))) == 9
    assert whole.failure
    assert (cut.rows, cut.readings, cut.set_aside, cut.failure) == (
        whole.rows, whole.readings, whole.set_aside, whole.failure
    )  # fmt: skip
    nameless = [[replace(check, description="") for check in verdict.checks] for verdict in (cut, whole)]
    assert nameless[0] == nameless[1]  # descriptions say until when readings can be, to the minute


def test_every_expectation_is_recorded_for_lineage(turbines: Fleet) -> None:
    """A row a device of what it showed, a row for all, a row a device with rows that do not fit; a failed run too."""
    bad = turbines.devices[0]
    turbines.send(1, {bad: {"outdoor_temperature": -273.2}})
    turbines.run("recorded")
    turbines.send(2)
    turbines.send(2)
    with pytest.raises(ValidationError):
        turbines.run("stopped")
    version = Lake(turbines.settings).version("readings")
    checks = Lake(turbines.settings).scan("checks").filter(pl.col("profile") == turbines.profile).collect()
    assert version is not None
    assert set(checks["table_version"]) == {version - 2, version}
    recorded = checks.filter(pl.col("run_id") == "recorded")
    devices = recorded.filter(pl.col("suite") == "devices", pl.col("column") == "outdoor_temperature_plausible")
    shown = devices.select("device", "observed", "elements", "passed").rows()
    assert shown == [(device, "0.0" if device == bad else "1.0", ROWS, device != bad) for device in turbines.devices]
    whole = recorded.filter(pl.col("suite") == "readings", pl.col("device") == "")
    assert (whole.height, whole["passed"].all(), whole["elements"].max()) == (6 + 2 * 7 + 4, True, 3 * ROWS)
    twice = checks.filter(pl.col("run_id") == "stopped", pl.col("expectation").str.contains("compound"))
    assert twice.select("device", "unexpected", "passed").rows() == [
        ("", 6 * ROWS, False), *((device, 2 * ROWS, False) for device in turbines.devices[1:])
    ]  # fmt: skip


def test_a_run_that_is_tried_again_is_recorded_once(turbines: Fleet) -> None:
    """A task that was killed after it recorded leaves no second set of rows."""
    turbines.send(1)
    new = find_new(turbines.settings, turbines.profile, None, "again")
    judge(turbines.settings, new)
    count = Lake(turbines.settings).scan("checks").filter(pl.col("run_id") == "again").collect().height
    judge(turbines.settings, new)
    assert Lake(turbines.settings).scan("checks").filter(pl.col("run_id") == "again").collect().height == count > 0


def test_a_device_is_readmitted_when_its_backlog_passes(turbines: Fleet) -> None:
    """What it sent while it was bad is judged together with what came since."""
    turbines.change("plausible: 0.99", "plausible: 0.6")
    bad = turbines.devices[0]
    turbines.send(1)
    turbines.run("first")
    turbines.send(2, {bad: {"pitch_angle": 300.0}})
    assert [refused.device for refused in turbines.run("second").set_aside] == [bad]
    turbines.send(3)
    assert [refused.device for refused in turbines.run("third").set_aside] == [bad]  # half of its backlog is bad
    turbines.send(4)
    result = turbines.run("fourth")
    assert (result.devices, result.rows) == (turbines.devices, 6 * ROWS)
    assert turbines.rows().filter(pl.col("device") == bad)["passed"].to_list() == [True, False, False, True]


def test_a_device_is_judged_again_when_its_profile_was_mended(turbines: Fleet) -> None:
    """Nothing new has to come: the same readings pass by the new profile."""
    turbines.send(1, {turbines.devices[0]: {"wind_speed": 60.0}})
    assert len(turbines.run("before").set_aside) == 1
    assert turbines.run("same").of == 0
    turbines.change("plausible: [0, 50]", "plausible: [0, 70]")
    result = turbines.run("after")
    assert (result.set_aside, result.rows) == ((), ROWS)


def test_nothing_new_is_said_without_great_expectations(turbines: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run changes nothing, keeps the report and who is set aside, and imports nothing heavy."""
    turbines.send(1, {turbines.devices[0]: {"wind_speed": 60.0}})
    first = turbines.run("first")
    monkeypatch.setitem(sys.modules, "great_expectations", None)  # importing it fails from here on
    text = describe_unchanged(find_new(turbines.settings, turbines.profile, None, "second"))
    assert "nothing new" in text
    assert f"{turbines.devices[0]} is set aside: expected wind_speed within" in text
    second = turbines.run("second")
    assert second == replace(first, passed=0, of=0, rows=0, readings=0)
    assert turbines.rows()["run_id"].unique().to_list() == ["first"]


def test_readings_of_one_device_can_be_judged_alone(turbines: Fleet) -> None:
    """The others stay to be judged."""
    turbines.send(1)
    one = turbines.run("one", [turbines.devices[1]])
    assert (one.rows, one.devices) == (ROWS, (turbines.devices[1],))
    rest = turbines.run("rest")
    assert (rest.rows, rest.devices) == (3 * ROWS, turbines.devices)


def test_a_device_of_no_such_profile_is_refused_by_name(turbines: Fleet) -> None:
    """A mistyped device is an error, not an empty run."""
    with pytest.raises(ValidationError, match=r"not enrolled under profile .*: nobody"):
        turbines.run("stranger", ["nobody"])


def test_an_unknown_profile_is_refused(turbines: Fleet) -> None:
    """The flow's parameter is checked against the files."""
    with pytest.raises(DocumentError, match="no profile `nothing`"):
        find_new(turbines.settings, "nothing", None, "run")


def test_data_docs_open_in_a_browser(turbines: Fleet) -> None:
    """Pages and style sheet are in bucket `reports`, readable over HTTP without credentials, and linked."""
    turbines.send(1)
    verdict = judge(turbines.settings, find_new(turbines.settings, turbines.profile, None, "docs"))
    index, kind = _fetch(verdict.report_url)
    assert kind == "text/html; charset=utf-8"
    base = verdict.report_url.removesuffix("index.html")
    for suite, url in verdict.pages:
        assert url.removeprefix(base) in index
        assert f"device to be enrolled under profile {turbines.profile}" in _fetch(url)[0], suite
    assert _fetch(f"{base}static/styles/data_docs_default_styles.css")[1].startswith("text/css")


def test_the_artifact_tells_it_all_without_the_report(turbines: Fleet) -> None:
    """The failing expectation comes first, then the rest; devices have their reasons, and the report is linked."""
    bad = turbines.devices[3]
    turbines.send(1, {bad: {"wind_speed": 99.0}})
    new = find_new(turbines.settings, turbines.profile, None, "artifact")
    verdict = judge(turbines.settings, new)
    text = describe(new, verdict)
    assert (
        f"| {bad} | set aside | expected wind_speed within 0 to 50 m/s in at least 0.99 of the values, got 0 |" in text
    )
    checks = [line for line in text.splitlines() if line.startswith(("| ✅", "| ❌"))]
    assert "wind_speed_plausible" in checks[0]
    assert "1 of 4 do not fit (25 %)" in checks[0]
    assert [line[:3] for line in checks] == ["| ❌"] + ["| ✅"] * (len(verdict.checks) - 1)
    assert f"[Data Docs]({verdict.report_url})" in text


def test_an_artifact_of_a_failed_set_says_that_the_line_stops(turbines: Fleet) -> None:
    """Nobody is shown as passed then."""
    new = find_new(turbines.settings, turbines.profile, None, "stopped")
    verdict = Verdict((), 1, 1, (), "new readings fail as a whole", "http://report")
    text = describe(replace(new, spans=_spans(turbines)), verdict)
    assert "**The line stops:** new readings fail as a whole." in text
    assert "| passed |" not in text


def _spans(turbines: Fleet) -> Any:
    return tuple(Span(device, 0, 1) for device in turbines.devices)


def _fetch(url: str) -> tuple[str, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]
