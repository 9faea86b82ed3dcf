"""Upkeep on the real store: files become few and small, rows and positions stay what they were."""

import io
import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from polars.testing import assert_frame_equal

from fieldloop.domain.carry import Carried
from fieldloop.domain.errors import StoreError
from fieldloop.stores import carried, compaction, fleet
from fieldloop.stores.compaction import LAYOUTS, compact, encode
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.acquire import acquire
from tasks.maintain import TABLES, learnt_under, maintain, rows
from tasks.partitions import positions
from tests.tasks.farm import TEXT

PROFILE = "senvion-mm82"
KEEP = timedelta(days=7)
BEGIN = datetime(2014, 12, 31, tzinfo=UTC)

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


def message(device: str, step: int) -> tuple[str, bytes]:
    stamp = (BEGIN + timedelta(minutes=10 * step)).isoformat()
    record = {"Wind_turbine_name": device, "Date_time": stamp, "Ws_avg": 5.0 + step % 7, "P_avg": 100.0}
    return f"devices.{device}.readings", json.dumps(record).encode()


def everything(settings: Settings, table: str = "readings") -> pl.DataFrame:
    frame = Lake(settings).scan(table).collect()
    return frame.sort(frame.columns)


def batch(first: int, count: int) -> pl.DataFrame:
    """Readings that a message each brought."""
    steps = np.arange(first, first + count)
    times = pl.Series(BEGIN.timestamp() * 1e6 + steps * 6e8).cast(pl.Int64).cast(pl.Datetime("us", "UTC"))
    columns = {
        "device": ["M1"] * count,
        "metric": np.where(steps % 2, "wind_speed", "active_power"),
        "event_time": times,
        "arrival_time": times + timedelta(seconds=1),
        "value": steps / 10,
        "sequence": steps,
        "replay": np.zeros(count, dtype=np.int64),
        "year": times.dt.year(),
    }
    return pl.DataFrame(columns, schema=SCHEMAS["readings"])


@pytest.fixture(scope="module")
def landed(data_plane: Settings, publish: Publish) -> Settings:
    """Five small acquisitions across New Year, some of it refused."""
    fleet.add_devices(Lake(data_plane), ["T1"], PROFILE)
    for part in range(5):
        publish([message("T1", step) for step in range(part * 40, part * 40 + 40)])
        publish([("devices.T1.readings", b"nonsense")])
        acquire(data_plane)
    return data_plane


def test_files_become_few_and_nothing_else_changes(landed: Settings) -> None:
    """A file a partition holds the same rows; a second run has nothing to do; positions are still known."""
    lake = Lake(landed)
    before = {table: everything(landed, table) for table in TABLES}
    position = min(positions(lake).values())
    done = {table: maintain(landed, table, KEEP) for table in TABLES}
    for table, frame in before.items():
        assert_frame_equal(everything(landed, table), frame)
    assert done["readings"].before.files > 5
    assert done["readings"].after.files == 2  # 2014 and 2015
    assert done["quarantine"].after.files == 1
    assert done["readings"].after.bytes < done["readings"].before.bytes
    assert min(positions(lake).values()) == position > 0
    assert maintain(landed, "readings", KEEP).replaced == 0
    assert [row["files"] for row in rows([done["quarantine"]])] == ["5 → 1"]


def test_files_of_old_versions_go_once_none_within_the_retention_needs_them(landed: Settings) -> None:
    """What a compaction replaced is there to be read until then; the newest version stays whole."""
    lake, now = Lake(landed), everything(landed)
    version = lake.version("readings")
    assert maintain(landed, "readings", KEEP).deleted == 0
    assert version is not None
    before = [lake.scan("readings", each).collect() for each in range(version + 1)]
    assert max(map(len, before)) == len(now)
    done = maintain(landed, "readings", timedelta(0))
    assert done.deleted == 5 + 1  # a file an acquisition, of which one wrote to both years
    assert rows([done])[0]["old files deleted"] == "6"
    assert_frame_equal(everything(landed), now)
    with pytest.raises(Exception, match="not found"):
        lake.scan("readings", version - 1).collect()


def test_what_messages_left_behind_is_read_the_same_once_its_files_are_few(store: Settings) -> None:
    """At every place in the stream a device's memory is what it was, and a later entry is seen after upkeep."""
    lake = Lake(store)
    lake.create("carried")
    begin = everything(store, "carried").height
    entries = [("K1", number, Carried(aliases={number: f"metric {number}"})) for number in range(1, 6)]
    for entry in entries:
        carried.keep(lake, [entry])
    before = everything(store, "carried")
    done = maintain(store, "carried", KEEP)
    assert (done.replaced, done.after.rows) == (done.before.files, begin + len(entries))
    assert_frame_equal(everything(store, "carried"), before)
    carried.keep(lake, [("K1", 9, Carried(aliases={9: "metric 9"}))])
    kept = carried.from_position(lake, 3)
    assert [kept.before("K1", place).aliases for place in (4, 6, 10)] == [
        {3: "metric 3"},
        {5: "metric 5"},
        {9: "metric 9"},
    ]


def test_acquisition_goes_on_exactly_once_after_upkeep(landed: Settings, publish: Publish) -> None:
    """Readings sent again after a compaction are still known; new ones land."""
    count = len(everything(landed))
    publish([message("T1", 3), message("T1", 1000)])
    acquired = acquire(landed)
    assert (acquired.readings, acquired.duplicates) == (2, 2)
    maintain(landed, "readings", KEEP)
    assert len(everything(landed)) == count + 2


def test_appends_beside_a_compaction_are_kept(store: Settings) -> None:
    """While one thread appends, another compacts: every row is there once in the end."""
    lake = Lake(store)
    lake.append("readings", batch(0, 10), ("writer", 1))

    def write() -> None:
        for number in range(1, 30):
            lake.append("readings", batch(number * 10, 10), ("writer", number + 1))

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        compact(store, "readings", file_rows=100)
    writer.join()
    compact(store, "readings")
    expected = batch(0, 300)
    kept = everything(store).filter(pl.col("device") == "M1")  # other tests' readings share the store
    assert_frame_equal(kept, expected.sort(expected.columns))
    assert lake.transaction("readings", "writer") == 30


def test_of_two_compactions_one_gives_way(store: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compaction whose files another has replaced meanwhile commits nothing."""
    lake = Lake(store)
    for number in range(3):
        lake.append("readings", batch(10_000 + number * 10, 10))
    before = everything(store)
    encoded = compaction.encode

    def overtaken(*arguments: object) -> bytes:
        monkeypatch.setattr(compaction, "encode", encoded)
        compact(store, "readings")
        return encoded(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "encode", overtaken)
    with pytest.raises(StoreError, match="could not be compacted"):
        compact(store, "readings")
    assert_frame_equal(everything(store), before)


def test_statistics_let_a_reader_skip_files(landed: Settings) -> None:
    """Delta's own log says what a compacted file holds."""
    handle = DeltaTable(Lake(landed).uri("readings"), storage_options=Lake(landed).options)
    files = pl.DataFrame(handle.get_add_actions(flatten=True)).sort("min.event_time")
    assert files["num_records"].sum() == len(everything(landed))
    assert files["min.event_time"][0] == BEGIN
    assert files["null_count.value"].to_list() == [0] * len(files)


def test_the_smaller_layout_is_kept() -> None:
    """What an archive brought is put together by metric, in row groups of their own."""
    noise = pl.lit(pl.Series(np.random.default_rng(1).integers(0, 200, 20_000) / 10))
    archive = (
        batch(0, 20_000)
        .drop("year")
        .with_columns(arrival_time=pl.lit(BEGIN).cast(pl.Datetime("us", "UTC")), sequence=pl.lit(1))
        .with_columns(value=pl.when(pl.col("metric") == "wind_speed").then(1.0).otherwise(noise))
    )
    by_metric = pq.ParquetFile(io.BytesIO(encode(archive, LAYOUTS["readings"])))
    assert by_metric.metadata.num_row_groups == 2
    assert_frame_equal(pl.DataFrame(by_metric.read()), archive.sort("metric", "device", "event_time"))


def test_groups_are_kept_up_too(tmp_path: Path) -> None:
    """Each group has tables and runs of its own; a recipe that cannot be read stops nobody else's upkeep."""
    (tmp_path / "recipes").mkdir()
    groups = "groups: {label: site, of: {north: {include: [T1]}, south: {include: [T2]}}}\n"
    for name, text in (("broken", "name: [\n"), ("plain", TEXT), ("sites", TEXT + groups)):
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text.replace("NAME", name))
    assert learnt_under(tmp_path) == ["broken", "plain", "sites", "sites--north", "sites--south"]
