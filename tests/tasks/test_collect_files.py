"""Files into the lake: each content once, whatever it is called, however it is cut short, whoever is killed."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from backports import zstd

from fieldloop.domain.errors import DocumentError, SourceError
from fieldloop.domain.readings import Reason
from fieldloop.domain.windows import OUT_OF_STREAM
from fieldloop.stores import fleet, objects
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.basis import _counted, _passed
from tasks.collect import collect, preview
from tasks.quarantine import Choice, replay
from tasks.validate import find_new
from tests.tasks.sources import Workshop, kill_while_collecting, workshop

FILES = """
kind: files
device: {RULE}
enrol: true
options: {path: "FOLDER/*.*", settle_s: 0}
"""


@pytest.fixture
def shop(store: Settings, tmp_path: Path) -> Workshop:
    return workshop(store, tmp_path)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


def declare(shop: Workshop, inbox: Path, name: str, rule: str = r"pattern: '(?P<device>[^/.]+)\.\w+(\.\w+)?$'") -> str:
    return shop.source(name, FILES.replace("RULE", rule).replace("FOLDER", str(inbox)))


def rows(first: int, count: int, level: float = 1.0) -> str:
    return "".join(f"2020-01-01T{n // 60:02}:{n % 60:02}:00,{level + n},on\n" for n in range(first, first + count))


HEADER = "at,level,state\n"


def test_csv_ndjson_and_parquet_give_the_same_readings(shop: Workshop, inbox: Path) -> None:
    """One table written three ways, packed and not, decodes to the same values and times."""
    source = declare(shop, inbox, "same")
    shop.profile(format_="json")
    text = HEADER + rows(0, 5, 1 / 3) + "2020-01-01T01:00:00,,off\n"
    frame = pl.read_csv(text.encode(), try_parse_dates=True)
    records = [
        {"at": f"{row['at']:%Y-%m-%dT%H:%M:%S}", "level": row["level"], "state": row["state"]}
        for row in frame.to_dicts()
    ]
    lines = "\n".join(json.dumps({key: value for key, value in row.items() if value is not None}) for row in records)
    (inbox / "same-csv.csv").write_text(text)
    (inbox / "same-zst.csv.zst").write_bytes(zstd.compress(text.encode()))
    (inbox / "same-json.ndjson.gz").write_bytes(gzip.compress(lines.encode()))
    frame.write_parquet(inbox / "same-parquet.parquet")
    done = collect(shop, source)
    assert (done.rows, done.readings, done.quarantined, done.failed) == (24, 44, 0, ())
    wanted = shop.stored("same-csv").drop("device", "arrival_time")
    assert wanted["value"].to_list()[:3] == [1 / 3, 1.0, 1 + 1 / 3]
    for device in done.enrolled:
        assert shop.stored(device).drop("device", "arrival_time").equals(wanted)


def test_a_second_run_a_copy_and_a_new_name_add_nothing(shop: Workshop, inbox: Path) -> None:
    """A file is known by its content."""
    source = declare(shop, inbox, "once", "name: once-1")
    (inbox / "a.csv").write_text(HEADER + rows(0, 10))
    assert collect(shop, source).readings == 20
    (inbox / "a.csv").rename(inbox / "b.csv")
    (inbox / "c.csv").write_bytes((inbox / "b.csv").read_bytes())
    again = collect(shop, source)
    assert (again.batches, again.rows, again.readings, again.duplicates) == (0, 0, 0, 0)
    assert len(shop.stored("once-1")) == 20


def test_a_file_that_grew_is_read_on_from_where_it_was(shop: Workshop, inbox: Path) -> None:
    """Appended rows are read alone; a file rewritten from its beginning is read whole, its old readings are repeats."""
    source = declare(shop, inbox, "grown", "name: grown-1")
    file = inbox / "log.csv"
    file.write_text(HEADER + rows(0, 10))
    collect(shop, source)
    file.write_text(HEADER + rows(0, 14))
    grown = collect(shop, source)
    assert (grown.rows, grown.readings, grown.duplicates) == (4, 8, 0)
    file.write_text(HEADER + rows(0, 14).replace("on", "off") + rows(14, 1))
    other = collect(shop, source)
    assert (other.rows, other.readings, other.duplicates) == (15, 2, 28)


def test_a_damaged_file_costs_only_itself_and_keeps_what_was_read(shop: Workshop, inbox: Path) -> None:
    """Truncated archive, wrong header, no such format, a line without end: each is named, the good file lands."""
    source = declare(shop, inbox, "damaged")
    packed = gzip.compress((HEADER + rows(0, 1000)).encode(), compresslevel=1)
    (inbox / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    (inbox / "header.csv").write_text("time,height\n1,2\n")
    (inbox / "ragged.csv").write_text(HEADER + "1,2,3,4\n" * 3)
    (inbox / "endless.csv").write_text(HEADER + rows(0, 2) + "x" * (3 << 20))
    (inbox / "page.html").write_text("<p>")
    (inbox / "broken.parquet").write_bytes(b"PAR1 no")
    (inbox / "fine.csv").write_text(HEADER + rows(0, 3))
    done = collect(shop, source)
    errors = {Path(failed.item).name: failed.error for failed in done.failed}
    assert set(errors) == {"cut.csv.gz", "header.csv", "ragged.csv", "endless.csv", "page.html", "broken.parquet"}
    assert "damaged" in errors["cut.csv.gz"]
    assert "expected columns `at`" in errors["header.csv"]
    assert "there are: `time`, `height`" in errors["header.csv"]
    assert "expected 3 cells, got 4" in errors["ragged.csv"]
    assert "line 4 is longer than 1,048,576 bytes" in errors["endless.csv"]
    assert len(shop.stored("fine")) == 6
    assert 0 < len(shop.stored("cut")) < 2000
    assert len(shop.stored("endless")) == 4
    assert collect(shop, source).failed == ()  # unchanged ones are not tried again
    (inbox / "cut.csv.gz").write_bytes(packed)
    assert collect(shop, source).failed == ()
    assert len(shop.stored("cut")) == 2000


def test_bad_rows_are_quarantined_with_file_and_row(shop: Workshop, inbox: Path) -> None:
    """A bad cell, a ragged row, a row without time, an unknown column: each once, with its number, the rest lands."""
    source = declare(shop, inbox, "bad")
    (inbox / "bad-1.csv").write_text(
        "at,level,state,colour\n"
        + "2020-01-01T00:00:00,5,on,red\n"
        + "2020-01-01T00:01:00,much,on,red\n"
        + "2020-01-01T00:02:00,5\n"
        + "yesterday,5,on,red\n"
        + '2020-01-01T00:03:00, NA,"off",red\n'
        + "2020-01-01T00:04:00,50000,asleep,red\n"
        + "2099-01-01T00:00:00,5,on,red\n"
    )
    done = collect(shop, source)
    refused = shop.refused(source)
    assert refused["sequence"].to_list() == [0, 2, 3, 4, 6, 6, 7]
    assert refused["reason"].to_list() == [
        Reason.UNKNOWN_METRIC,
        Reason.WRONG_TYPE,
        Reason.UNDECODABLE,
        Reason.NO_EVENT_TIME,
        Reason.OUT_OF_RANGE,
        Reason.WRONG_TYPE,
        Reason.FUTURE,
    ]
    assert set(refused["subject"].str.extract(r"([^/]+)#[0-9a-f]{12}$")) == {"bad-1.csv"}
    assert set(refused["device"]) == {"bad-1"}
    assert refused["payload"].to_list()[1] == b"at,level,state\n2020-01-01T00:01:00,much,on\n"
    assert (done.rows, done.readings, done.quarantined) == (7, 4, 7)
    assert shop.stored("bad-1").filter(pl.col("metric") == "state")["value"].to_list() == [1.0, 1.0, 0.0]


def test_rows_name_their_device_and_strangers_are_quarantined(shop: Workshop, inbox: Path) -> None:
    """By a column, without enrolment: rows of enrolled devices land, the others are kept with what to do."""
    text = FILES.replace("RULE", "field: meter").replace("FOLDER", str(inbox)).replace("enrol: true", "")
    source = shop.source("named", text)
    lake = Lake(shop)
    fleet.add_devices(lake, ["named-1"], "meter")
    fleet.add_devices(lake, ["named-2"], "senvion-mm82")
    names = ("named-1", "named-2", "n" * 64, "named 4", "")
    (inbox / "all.csv").write_text(
        "at,level,meter\n"
        + "".join(f"2020-01-01T00:0{n}:00,{n},{name}\n" for n, name in enumerate(names))
    )  # fmt: skip
    done = collect(shop, source)
    assert (done.readings, done.quarantined, done.enrolled) == (1, 4, ())
    details = shop.refused(source)["detail"].to_list()
    assert "is enrolled under profile senvion-mm82" in details[0]
    assert "cannot name a device" in details[1]
    assert "`named-4` is not enrolled" in details[2]
    assert "expected a device's name in field `meter`, found none" in details[3]


def test_a_file_of_a_device_that_is_not_enrolled_waits(shop: Workshop, inbox: Path) -> None:
    """It is named as not read, nothing of it is quarantined, and it lands once the device is enrolled."""
    source = shop.source(
        "waits", FILES.replace("RULE", "name: waits-1").replace("FOLDER", str(inbox)).replace("enrol: true", "")
    )
    (inbox / "a.csv").write_text(HEADER + rows(0, 3))
    done = collect(shop, source)
    assert "not enrolled" in done.failed[0].error
    assert (done.readings, done.quarantined) == (0, 0)
    fleet.add_devices(Lake(shop), ["waits-1"], "meter")
    assert collect(shop, source).readings == 6


def test_killed_after_any_commit_the_runs_together_bring_each_row_once(
    shop: Workshop, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 in the middle of a file and between files, then a run to the end: all readings, all refusals, once."""
    source = declare(shop, inbox, "killed", "name: killed-1")
    small = (
        "from fieldloop.stores.sources import source; source.MAX_CELLS = source.MIN_ROWS = 200; "
        "collect.COMMIT_READINGS = 100"
    )
    for file in range(3):
        text = rows(400 * file, 200) + "never,1,on\n" + rows(400 * file + 200, 200)
        (inbox / f"{file}.csv").write_text(HEADER + text)
    kill_while_collecting(shop, source, small, commits=3)
    done = collect(shop, source)
    assert done.readings > 0
    stored = shop.stored("killed-1")
    assert len(stored) == 2 * 3 * 400 == len(stored.unique(["metric", "event_time"]))
    assert shop.refused(source)["sequence"].to_list() == [201, 201, 201]
    assert collect(shop, source).rows == 0


def test_a_run_that_entered_and_never_committed_is_void(
    shop: Workshop, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between manifest and readings, the file is read again by the next run."""
    source = declare(shop, inbox, "void", "name: void-1")
    (inbox / "a.csv").write_text(HEADER + rows(0, 5))
    append = Lake.append

    def die(lake: Lake, table: str, *rest: object, **further: object) -> int:
        if table == "readings":
            raise KeyboardInterrupt
        return append(lake, table, *rest, **further)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "append", die)
        with pytest.raises(KeyboardInterrupt):
            collect(shop, source)
    assert len(shop.stored("void-1")) == 0
    assert collect(shop, source).readings == 10


def test_objects_are_read_from_the_inbox(shop: Workshop) -> None:
    """A file in bucket `inbox` of the object store lands like one in a folder; other buckets are refused."""
    objects.put(objects.client(shop, "inbox"), "inbox", "meters/far-1.csv", (HEADER + rows(0, 4)).encode())
    text = FILES.replace("RULE", r"pattern: '(?P<device>[\w-]+)\.csv$'")
    source = shop.source("far", text.replace("FOLDER/*.*", "s3://inbox/meters/*.csv"))
    assert collect(shop, source).readings == 8
    assert collect(shop, source).rows == 0
    with pytest.raises(SourceError, match="bucket `inbox` alone"):
        collect(shop, shop.source("lake", text.replace("FOLDER/*.*", "s3://lake/readings/*")))


def test_local_times_of_parquet_are_of_the_profiles_zone(shop: Workshop, inbox: Path) -> None:
    """Naive timestamps are read by the zone, zoned ones as they are; nested fields by their paths."""
    shop.profile(format_="json")
    (text,) = [(shop.root / "expectations/profiles/meter.yaml").read_text()]
    shop.profile(text.replace("zone: UTC", "zone: Europe/Paris").replace("field: level", "field: tank.level"), "json")
    source = declare(shop, inbox, "zoned")
    at = datetime(2020, 7, 1, 12, 0)
    frame = pl.DataFrame({"at": [at], "tank": [{"level": 2}], "note": ["x"]})
    frame.write_parquet(inbox / "zoned-local.parquet")
    frame.with_columns(pl.col("at").dt.replace_time_zone("UTC")).write_parquet(inbox / "zoned-utc.parquet")
    assert collect(shop, source).quarantined == 0
    assert shop.stored("zoned-local")["event_time"].to_list() == [datetime(2020, 7, 1, 10, 0, tzinfo=UTC)]
    assert shop.stored("zoned-utc")["event_time"].to_list() == [at.replace(tzinfo=UTC)]


def test_preview_changes_nothing(shop: Workshop, inbox: Path) -> None:
    """It shows the first batch's metrics and refusals; devices are not enrolled by it."""
    source = declare(shop, inbox, "seen", "name: seen-1")
    (inbox / "a.csv").write_text(HEADER + rows(0, 2) + "never,1,on\n")
    seen = preview(shop, source)
    assert (seen.rows, seen.devices) == (3, ("seen-1",))
    assert [row[:2] for row in seen.metrics] == [("level", 2), ("state", 2)]
    assert seen.refused[0][0] == Reason.NO_EVENT_TIME
    assert "seen-1" not in fleet.devices(Lake(shop))
    assert len(shop.stored("seen-1")) == 0


def test_refused_rows_are_replayed_after_the_profile_is_mended(shop: Workshop, inbox: Path) -> None:
    """What was out of range lands out of quarantine, outside the stream like the rest of its file, once."""
    source = declare(shop, inbox, "mended", "name: mended-1")
    (inbox / "a.csv").write_text(HEADER + rows(0, 2) + "2020-01-01T00:02:00,50000,on\n")
    assert collect(shop, source).quarantined == 1
    text = (shop.root / "expectations/profiles/meter.yaml").read_text()
    shop.profile(text.replace("[0, 10000]", "[0, 100000]"))
    done = replay(shop, Choice(device="mended-1"))
    assert (done.messages, done.readings, done.duplicates, done.settled) == (1, 1, 1, 1)
    stored = shop.stored("mended-1")
    assert len(stored) == 6
    assert set(stored["sequence"]) == {OUT_OF_STREAM}
    assert replay(shop, Choice(device="mended-1")).messages == 0


def test_a_new_channel_lands_when_everything_is_read_again(shop: Workshop, inbox: Path) -> None:
    """After the profile has learnt a column, `again` brings its values alone."""
    source = declare(shop, inbox, "again", "name: again-1")
    text = (shop.root / "expectations/profiles/meter.yaml").read_text()
    shop.profile(text.split("  - metric: state")[0])
    (inbox / "a.csv").write_text(HEADER + rows(0, 5))
    assert collect(shop, source).readings == 5
    shop.profile(text)
    assert collect(shop, source).rows == 0
    done = collect(shop, source, again=True)
    assert (done.readings, done.duplicates) == (5, 5)
    assert collect(shop, source).rows == 0


def test_validation_judges_and_preprocessing_reads_what_was_collected(shop: Workshop, inbox: Path) -> None:
    """Rows of files are new until they are judged, then within what counts; later files are new again."""
    source = declare(shop, inbox, "judged", "name: judged-1")
    lake = Lake(shop)

    def judge() -> None:
        (span,) = find_new(shop, "meter", ["judged-1"], "run").spans
        row = ("run", "judged-1", True, span.until, span.replayed_until, "", "", datetime.now(UTC))
        lake.append("validations", pl.DataFrame([row], schema=SCHEMAS["validations"], orient="row"))

    def validated() -> int:
        until = {"judged-1": _passed(lake)["judged-1"]}
        return sum(count for _, count, *_ in _counted(lake, lake.version("readings") or 0, until, None))

    (inbox / "a.csv").write_text(HEADER + rows(0, 5))
    collect(shop, source)
    judge()
    assert validated() == 10
    (inbox / "b.csv").write_text(HEADER + rows(5, 2))
    collect(shop, source)
    assert validated() == 10
    judge()
    assert validated() == 14
    assert find_new(shop, "meter", ["judged-1"], "run").spans == ()


THIRD_PARTY = """
from typing import ClassVar
import numpy as np
import pyarrow as pa
from fieldloop.stores.sources.source import Batch, Options

class CountOptions(Options):
    until: int

class CountSource:
    options: ClassVar = CountOptions
    def __init__(self, request, options):
        self._until = options.until
    def read(self, done):
        first = done[-1]["next"] if done else 0
        if first < self._until:
            at = [f"2020-01-01T00:{n:02}:00" for n in range(first, self._until)]
            rows = pa.table({"at": at, "level": list(range(first, self._until))})
            yield Batch("count", rows, np.arange(first, self._until), {"next": self._until})
"""


def test_another_package_brings_a_kind_by_its_entry_point(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class in a package that is not ours is declared, checked, run and continued like those that are."""
    package = tmp_path / "site"
    (package / "counter-1.0.dist-info").mkdir(parents=True)
    (package / "counter-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: counter\nVersion: 1.0\n")
    entry = "[fieldloop.sources]\ncount = fieldloop_counter:CountSource\n"
    (package / "counter-1.0.dist-info" / "entry_points.txt").write_text(entry)
    (package / "fieldloop_counter.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(package)
    text = "kind: count\ndevice: {name: count-1}\nenrol: true\noptions: {until: 5}\n"
    assert collect(shop, shop.source("count", text)).readings == 5
    assert collect(shop, shop.source("count", text)).rows == 0
    assert collect(shop, shop.source("count", text.replace("5", "8"))).readings == 3
    with pytest.raises(DocumentError, match=r"count.yaml:6: missing key `until` in `options`"):
        collect(shop, shop.source("count", text.replace("until: 5", "")))
