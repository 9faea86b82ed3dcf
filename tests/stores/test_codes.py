"""Ordered dictionaries and codes of digits: fewer bytes, and the same values to every reader."""

import io
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.transaction import AddAction
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from fieldloop.stores import codes, thrift
from fieldloop.stores.compaction import LAYOUTS, Layout, encode

LEVEL = 9
EVER = pl.Datetime("us", "UTC")


def written(frame: pl.DataFrame, rows: int) -> bytes:
    """Return a file as pyarrow writes it."""
    buffer = io.BytesIO()
    pq.write_table(frame.to_arrow(), buffer, row_group_size=rows, compression="zstd")
    return buffer.getvalue()


def coded(frame: pl.DataFrame, rows: int, level: int = LEVEL) -> bytes:
    """Return the same file with the values written anew."""
    groups = [part["value"].to_numpy() for part in frame.iter_slices(rows)]
    return codes.with_ordered_codes(written(frame, rows), "value", groups, level)


def sizes(file: bytes) -> list[int]:
    """Bytes of each row group's first column; of values that were not written anew they are the same as before."""
    metadata = pq.read_metadata(io.BytesIO(file))
    return [metadata.row_group(group).column(0).total_compressed_size for group in range(metadata.num_row_groups)]


def as_table(folder: Path, file: bytes, frame: pl.DataFrame) -> Path:
    """Make a folder a Delta table of this one file, and return where it is."""
    write_deltalake(str(folder), frame[:0].to_arrow(compat_level=pl.CompatLevel.oldest()))
    path = folder / "coded.parquet"
    path.write_bytes(file)
    add = AddAction(path.name, len(file), {}, 0, True, json.dumps({"numRecords": len(frame)}))
    table = DeltaTable(str(folder))
    table.create_write_transaction([add], "append", table.schema())
    return path


def bits(frame: pl.DataFrame) -> Any:
    return frame["value"].to_numpy().view(np.int64).tolist()


@pytest.mark.parametrize("distinct", [1, 2, 200, 256, 257, 5000, 65_536, 65_537, 90_000])
def test_every_width_of_codes_reads_back(distinct: int, tmp_path: Path) -> None:
    """One byte, two bytes, and bits beyond; two row groups; in pyarrow, Polars and DuckDB."""
    steps = np.arange(200_000)
    noise = np.random.default_rng(1).integers(0, 3, len(steps))
    values = (steps + noise) % distinct / 100 - 3  # near each other in value where they are in time
    frame = pl.DataFrame({"value": values, "number": steps})
    path = tmp_path / "coded.parquet"
    path.write_bytes(coded(frame, 120_000))
    least = 0 if distinct <= 2 else 1  # so few codes are as small as they were
    assert path.stat().st_size <= len(written(frame, 120_000)) - least
    assert_frame_equal(pl.read_parquet(path), frame, check_exact=True)
    assert_frame_equal(pl.DataFrame(pq.read_table(path)), frame, check_exact=True)
    rows = duckdb.sql(f"select * from '{path}' order by number").to_arrow_table()  # noqa: S608 - a path of the test's
    assert_frame_equal(pl.DataFrame(rows), frame, check_exact=True)


@pytest.mark.parametrize("by_ends", [False, True])
@pytest.mark.parametrize(("base", "width"), [(256, 16), (71, 16), (128, 32), (256, 13)])
def test_every_numbering_reads_back(
    by_ends: bool, base: int, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Digits with gaps between them, wide codes, packed ones; in order and by ends; in readers that share no code."""
    monkeypatch.setattr(codes, "_numberings", lambda _distinct: iter([codes._Numbering(by_ends, base, width)]))
    monkeypatch.setattr(codes, "_wide", lambda *_: None)
    frame = pl.DataFrame({"value": np.random.default_rng(1).integers(-2_500, 2_500, 40_000) / 100})
    file = coded(frame, 10_000)
    assert all(ours < theirs for ours, theirs in zip(sizes(file), sizes(written(frame, 10_000)), strict=True))
    path = as_table(tmp_path, file, frame)
    rust = QueryBuilder().register("coded", DeltaTable(str(tmp_path))).execute("select value from coded").read_all()
    duck = duckdb.sql(f"select value from '{path}' where value > -30").to_arrow_table()  # noqa: S608 - a path of the test's
    for read in (pl.read_parquet(path), pl.DataFrame(pq.read_table(path)), pl.DataFrame(rust), pl.DataFrame(duck)):
        assert bits(read.sort("value")) == bits(frame.sort("value"))


def test_digits_of_equal_range_are_smaller_than_whole_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a twentieth at least, of values that lie as measured ones do: the smallest numbering is kept."""
    frame = pl.DataFrame({"value": np.random.default_rng(1).normal(20, 5, 50_000).round(2)})
    kept = coded(frame, 50_000, 19)
    monkeypatch.setattr(codes, "_numberings", lambda _distinct: iter([codes._Numbering(False, 256, 16)]))
    assert len(kept) < 0.95 * len(coded(frame, 50_000, 19))


def test_names_that_are_all_the_same_take_nearly_nothing() -> None:
    """A page's header and statistics would come again every 20,000 rows."""
    steps = np.arange(200_000)
    frame = pl.DataFrame({"device": "T1", "metric": "a", "event_time": steps * 60_000_000, "value": steps % 7 / 7})
    frame = frame.with_columns(pl.col("event_time").cast(EVER))
    file = encode(frame, [Layout(("device", "event_time"), codes="value")])
    assert sizes(file)[0] < 200


def test_values_that_change_little_take_wide_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk of small steps takes at least a twentieth less than in any other numbering."""
    walk = np.round(20 + np.cumsum(np.random.default_rng(1).normal(0, 0.1, 50_000)) % 30, 2)
    frame = pl.DataFrame({"value": walk})
    wide = coded(frame, 50_000, 19)
    monkeypatch.setattr(codes, "_wide", lambda *_: None)
    assert len(wide) < 0.95 * len(coded(frame, 50_000, 19))
    assert bits(pl.read_parquet(io.BytesIO(wide))) == bits(frame)


@settings(max_examples=40)
@given(some=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=1, max_size=20))
def test_any_values_keep_their_bits(some: list[float]) -> None:
    """Negative zero, infinities, NaN, subnormal numbers; each many times, so that the codes are smaller."""
    frame = pl.DataFrame({"value": np.tile(np.array([*some, 0.0, -0.0]), 300)})
    file = coded(frame, 10_000)
    assert bits(pl.read_parquet(io.BytesIO(file))) == bits(frame)
    assert bits(pl.DataFrame(pq.read_table(io.BytesIO(file)))) == bits(frame)


def test_a_column_stays_where_codes_are_not_smaller() -> None:
    """Of values that are all different nothing is gained: the pages are the old ones, byte for byte."""
    frame = pl.DataFrame({"value": np.random.default_rng(1).normal(size=5_000)})
    assert len(coded(frame, 10_000)) <= len(written(frame, 10_000))
    assert bits(pl.read_parquet(io.BytesIO(coded(frame, 10_000)))) == bits(frame)


def test_metadata_survives_the_way_through_thrift() -> None:
    """Read and written again, a footer is the same byte for byte."""
    file = written(pl.DataFrame({"value": [1.0, None], "name": ["a", "b"], "flag": [True, None]}), 10)
    footer = file[-8 - int.from_bytes(file[-8:-4], "little") : -8]
    assert thrift.write(thrift.Reader(footer).struct()) == footer


def test_other_delta_readers_see_the_same_rows(tmp_path: Path) -> None:
    """A table that has a compacted file, read through Delta by Polars, pyarrow and DuckDB."""
    steps = np.arange(50_000)
    metric = np.where(steps % 2, "a", "b")
    frame = pl.DataFrame({"device": "T1", "metric": metric, "event_time": steps * 60_000_000, "value": steps % 700 / 7})
    frame = frame.with_columns(pl.col("event_time").cast(EVER))
    order = ("metric", "device", "event_time")
    as_table(tmp_path, encode(frame, [Layout(order, group="metric", codes="value")]), frame)
    table, expected = DeltaTable(str(tmp_path)), frame.sort(order)
    assert_frame_equal(pl.read_delta(str(tmp_path)).sort(order), expected, check_exact=True)
    dataset: ds.Dataset = table.to_pyarrow_dataset()
    assert_frame_equal(pl.DataFrame(dataset.to_table(filter=ds.field("value") >= 0)).sort(order), expected)
    (seen,) = duckdb.from_arrow(dataset).aggregate("sum(value) as total, count(*) as rows").fetchall()
    assert seen == (pytest.approx(frame["value"].sum()), len(frame))


def test_readings_are_coded_in_both_layouts() -> None:
    """The layouts that compaction tries both name the column."""
    assert {layout.codes for layout in LAYOUTS["readings"]} == {"value"}
