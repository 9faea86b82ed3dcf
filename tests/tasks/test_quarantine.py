"""Out of quarantine: a mended profile or an enrolment brings what was refused into the lake, once."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from fieldloop.cli.quarantine import app, printable
from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores import fleet
from fieldloop.stores.history import readings_as_of
from fieldloop.stores.lake import Lake, Snapshot
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks import quarantine
from tasks.acquire import acquire
from tasks.basis import _counted, _passed
from tasks.landing import new_readings
from tasks.quarantine import APPLICATION, Choice, history, replay, summary, waiting
from tasks.unjudged import find_new

PROFILE = "quarantine-test"
ROOT = Path(__file__).parents[2]
FIELD = "Ws_avg"

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


class Workshop(Settings):
    """The data plane's settings, with profiles from a folder of the test's own."""

    folder: Path

    @property
    def root(self) -> Path:
        """The folder with `expectations/profiles`."""
        return self.folder

    def promise(self, field: str) -> None:
        """Make the profile read its wind speed from this field."""
        text = (ROOT / "expectations" / "profiles" / "senvion-mm82.yaml").read_text()
        text = text.replace("name: senvion-mm82", f"name: {PROFILE}").replace(FIELD, field)
        path = self.folder / "expectations" / "profiles" / f"{PROFILE}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def workshop(data_plane: Settings, tmp_path: Path) -> Workshop:
    """The data plane with a profile whose wind speed has the wrong field."""
    settings = Workshop.model_validate({**data_plane.model_dump(), "folder": tmp_path})
    settings.promise("Wind")
    return settings


def message(device: str, minute: int, **fields: object) -> tuple[str, bytes]:
    record = {"Wind_turbine_name": device, "Date_time": f"2015-03-01T01:{minute:02}:00+00:00", FIELD: 5.0, "P_avg": 9.0}
    return f"devices.{device}.readings", json.dumps(record | fields).encode()


def stored(settings: Settings, device: str) -> pl.DataFrame:
    return Lake(settings).scan("readings").filter(pl.col("device") == device).sort("event_time", "metric").collect()


def left(settings: Settings, device: str) -> pl.DataFrame:
    return waiting(Lake(settings)).filter(pl.col("device") == device).sort("sequence").collect()


def test_mended_profile_brings_each_reading_once(workshop: Workshop, publish: Publish) -> None:
    """Readings land with their old position and arrival; good fields are not doubled; a second replay does nothing."""
    lake = Lake(workshop)
    fleet.add_devices(lake, ["Q1"], PROFILE)
    publish([message("Q1", minute) for minute in (0, 10, 20)])
    acquired = acquire(workshop)
    assert (acquired.readings, acquired.quarantined) == (3, 3)
    refused = left(workshop, "Q1")
    workshop.promise(FIELD)
    done = replay(workshop, Choice(device="Q1"))
    assert (done.messages, done.readings, done.duplicates, done.settled, done.refused) == (3, 3, 3, 3, 0)
    wind = stored(workshop, "Q1").filter(pl.col("metric") == "wind_speed")
    assert wind["sequence"].to_list() == refused["sequence"].to_list()
    assert wind["arrival_time"].to_list() == refused["arrival_time"].to_list()
    assert wind["replay"].unique().to_list() == [lake.transaction("readings", APPLICATION)]
    assert len(left(workshop, "Q1")) == 0
    assert replay(workshop, Choice(device="Q1")).messages == 0
    assert len(stored(workshop, "Q1")) == 6


def test_readings_are_as_they_were_known_at_a_moment(workshop: Workshop, publish: Publish) -> None:
    """Late readings are known from their arrival, what a replay brought from the replay on."""
    lake = Lake(workshop)
    fleet.add_devices(lake, ["Q9"], PROFILE)
    moments = [datetime.now(UTC)]
    publish([message("Q9", 30)])
    acquire(workshop)
    moments.append(datetime.now(UTC))
    publish([message("Q9", 0)])
    acquire(workshop)
    moments.append(datetime.now(UTC))
    workshop.promise(FIELD)
    replay(workshop, Choice(device="Q9"))
    moments.append(datetime.now(UTC))
    known = [
        readings_as_of(lake, moment).filter(pl.col("device") == "Q9").select("metric", minute="event_time").collect()
        for moment in moments
    ]
    power, wind = "active_power", "wind_speed"
    seen = [sorted((metric, minute.minute) for metric, minute in rows.iter_rows()) for rows in known]
    assert seen[:3] == [[], [(power, 30)], [(power, 0), (power, 30)]]
    assert seen[3] == [(power, 0), (power, 30), (wind, 0), (wind, 30)]
    with pytest.raises(StoreError, match="time zone"):
        readings_as_of(lake, datetime(2026, 1, 1))


def test_what_still_fails_stays_with_its_new_reason(workshop: Workshop, publish: Publish) -> None:
    """A message that is refused again keeps its bytes and gets the reason that holds now."""
    publish([message("Q2", 0), message("Q2", 10, Ws_avg=4000.0), ("devices.Q2.readings", b"\x00\n{nonsense")])
    acquire(workshop)
    assert set(left(workshop, "Q2")["reason"]) == {Reason.UNKNOWN_DEVICE}
    fleet.add_devices(Lake(workshop), ["Q2"], PROFILE)
    workshop.promise(FIELD)
    done = replay(workshop, Choice(reason=Reason.UNKNOWN_DEVICE, device="Q2"))
    assert (done.messages, done.readings, done.settled, done.refused) == (3, 3, 1, 2)
    still = left(workshop, "Q2")
    assert still["reason"].to_list() == [Reason.OUT_OF_RANGE, Reason.UNDECODABLE]
    assert still["payload"].to_list()[1] == b"\x00\n{nonsense"
    (one,) = still.filter(pl.col("reason") == Reason.UNDECODABLE)["sequence"]
    told = history(Lake(workshop), Choice(sequence=one), 10)
    assert told["reason"].to_list() == [Reason.UNKNOWN_DEVICE, Reason.UNDECODABLE]


def test_killed_between_its_commits_a_replay_is_finished_by_the_next(
    workshop: Workshop, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the readings committed and nothing settled, the next replay doubles nothing and settles all."""
    fleet.add_devices(Lake(workshop), ["Q3"], PROFILE)
    publish([message("Q3", 0)])
    acquire(workshop)
    workshop.promise(FIELD)
    append = Lake.append

    def die(lake: Lake, table: str, *rest: object, **further: object) -> int:
        if table == "quarantine":
            raise KeyboardInterrupt
        return append(lake, table, *rest, **further)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "append", die)
        with pytest.raises(KeyboardInterrupt):
            replay(workshop, Choice(device="Q3"))
    assert len(left(workshop, "Q3")) == 1
    done = replay(workshop, Choice(device="Q3"))
    assert (done.readings, done.duplicates, done.settled) == (0, 2, 1)
    assert len(stored(workshop, "Q3")) == 2


def test_validation_and_preprocessing_take_up_what_was_replayed(workshop: Workshop, publish: Publish) -> None:
    """A device that passed has something new to be judged, at an old position, and it counts once it passed."""
    lake = Lake(workshop)
    fleet.add_devices(lake, ["Q4"], PROFILE)
    publish([message("Q4", minute) for minute in (0, 10)])
    acquire(workshop)

    def judge() -> None:
        (span,) = find_new(workshop, PROFILE, ["Q4"], "run").spans
        row = ("run", "Q4", True, span.until, span.replayed_until, "", "", datetime.now(UTC))
        lake.append("validations", pl.DataFrame([row], schema=SCHEMAS["validations"], orient="row"))

    judge()
    assert find_new(workshop, PROFILE, ["Q4"], "run").spans == ()
    version = lake.version("readings") or 0
    workshop.promise(FIELD)
    replay(workshop, Choice(device="Q4"))
    (span,) = find_new(workshop, PROFILE, ["Q4"], "run").spans
    assert span.replayed_after < span.replayed_until
    assert span.after == span.until

    def validated() -> int:
        until = {"Q4": _passed(lake)["Q4"]}
        return sum(count for _, count, *_ in _counted(lake, lake.version("readings") or version, until, None))

    assert validated() == 2
    judge()
    assert validated() == 4
    assert find_new(workshop, PROFILE, ["Q4"], "run").spans == ()


def test_replay_gives_way_to_an_acquisition_at_the_same_time(
    workshop: Workshop, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it decided before an acquisition committed is not committed; the next replay doubles nothing."""
    publish([message("Q5", 0)])
    acquire(workshop)
    fleet.add_devices(Lake(workshop), ["Q5"], PROFILE)
    decide = new_readings

    def overtaken(snapshot: Snapshot, rows: pl.DataFrame) -> pl.DataFrame:
        fresh = decide(snapshot, rows)
        publish([message("Q5", 0)])
        acquire(workshop)
        return fresh

    with monkeypatch.context() as patched:
        patched.setattr(quarantine, "new_readings", overtaken)
        with pytest.raises(StoreError, match="another writer was quicker"):
            replay(workshop, Choice(device="Q5"))
    assert len(stored(workshop, "Q5")) == 1
    assert replay(workshop, Choice(device="Q5")).readings == 0
    assert len(stored(workshop, "Q5")) == 1


def test_command_line_lists_shows_and_replays(
    workshop: Workshop, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person sees reasons with counts, the raw bytes in print, and what a replay did."""
    for name, value in workshop.environment().items():
        monkeypatch.setenv(name, value)
    publish([("devices.Q6.readings", b'{"a":\x01\x1b}')] * 2)
    acquire(workshop)
    run = CliRunner()
    assert summary(Lake(workshop), Choice(device="Q6"))["rows"].to_list() == [2]
    listed = run.invoke(app, ["list", "--device", "Q6"]).stdout
    assert "unknown device" in listed
    shown = run.invoke(app, ["show", "--device", "Q6", "--rows", "1"]).stdout
    assert r'9 bytes: {"a":\x01\x1b}'.replace("9", str(len(b'{"a":\x01\x1b}'))) in shown
    assert run.invoke(app, ["replay"]).exit_code == 2
    assert "2 rows stay" in run.invoke(app, ["replay", "--device", "Q6"]).stdout


def test_what_has_landed_is_listed_no_more_and_is_shown_as_replayed(
    workshop: Workshop, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is only ever appended to; the list has what waits, and a message's own rows say what became of it."""
    for name, value in workshop.environment().items():
        monkeypatch.setenv(name, value)
    fleet.add_devices(Lake(workshop), ["Q7"], PROFILE)
    publish([message("Q7", 1)])
    acquire(workshop)
    run = CliRunner()
    assert "Q7" in run.invoke(app, ["list", "--device", "Q7"]).stdout
    workshop.promise(FIELD)
    assert replay(workshop, Choice(device="Q7")).settled == 1
    assert "nothing waits in quarantine" in run.invoke(app, ["list", "--device", "Q7"]).stdout
    assert "replayed: by replay" in run.invoke(app, ["show", "--device", "Q7"]).stdout


def test_raw_bytes_are_bounded_in_print() -> None:
    """A megabyte of noise is one short line."""
    assert len(printable(b"\xff" * (1 << 20))) < 9000
