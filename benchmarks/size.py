"""Bytes a reading of two real data sets, as the lake keeps them after upkeep, and next to other ways to keep them.

`FIELDLOOP_BEIJING` names the folder with the Beijing multi-site air quality data (`PRSA_Data_*.csv`, plain or `.zst`);
without it, `../shared/data/beijing_multisite_air` is looked for. Where there is none, that set is left out, as is said.
The sets record no arrival: the figures are those of an archive's import, a message a device and day. In the `live` ones
each record came as a message of its own, up to 400 ms late.
"""

import gzip
import io
import lzma
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, write_deltalake

from benchmarks import influx
from benchmarks.figure import Figure
from fieldloop.stores import files
from fieldloop.stores.compaction import LAYOUTS, encode
from fieldloop.stores.tables import PARTITIONS, SCHEMAS
from infra.local.turbines import source_readings
from tasks.landing import KEY, NAMES, STORED

READING: Final = ("device", "metric", "event_time", "value")
BEIJING_FOLDER: Final = "../shared/data/beijing_multisite_air"
MOST_DELAY_US: Final = 400_000
BEIJING: Final = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")


def measure() -> Figure:
    """Encode both sets; the peer of the main figure is Parquet as pyarrow writes it unless told otherwise."""
    ever = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    sets = {"wind_farm": source_readings(*ever).rename({"field": "metric"}).select(READING)}
    folder = Path(os.environ.get("FIELDLOOP_BEIJING", BEIJING_FOLDER))
    further: dict[str, Any] = {}
    if folder.is_dir():
        sets["beijing"] = _beijing(folder)
    else:
        further["beijing_left_out"] = "no data: FIELDLOOP_BEIJING names no folder"
    peers = dict(_PEERS)
    if influx.installed():
        peers["InfluxDB 1.x, compacted"] = influx.kept_bytes
    else:
        further["influxdb_left_out"] = "not installed; Debian and Ubuntu: sudo apt-get install influxdb"
    for name, readings in sets.items():
        archive, live = _arrived(readings, live=False), _arrived(readings, live=True)
        further[name] = _lake(archive)
        further[f"{name}_live"] = _lake(live)
        further[f"{name}_peers"] = {peer: round(kept(readings) / len(readings), 2) for peer, kept in peers.items()}
        further[f"{name}_readings"] = len(readings)
    further["write_rows_s"] = _write_rows_s(_arrived(sets["wind_farm"], live=True))
    default = further["wind_farm_peers"]["parquet, defaults, as it arrived"]
    return Figure(
        figure=further["wind_farm"],
        unit="bytes a reading",
        peer="Parquet with pyarrow's defaults, in the order of arrival, without arrival times and positions",
        ratio=round(further["wind_farm"] / default, 3),
        further=further,
    )


def _beijing(folder: Path) -> pl.DataFrame:
    parts = []
    for path in sorted(folder.glob("PRSA_Data_*.csv*")):
        frame = pl.read_csv(path, null_values="NA", infer_schema_length=None)
        hour = pl.datetime("year", "month", "day", "hour", time_unit="us", time_zone="UTC")
        wide = frame.select(
            pl.col("station").alias("device"), hour.alias("event_time"), pl.col(BEIJING).cast(pl.Float64)
        )
        parts.append(wide.unpivot(index=["device", "event_time"], variable_name="metric", value_name="value"))
    return pl.concat(parts).drop_nulls("value").select(READING)


def _arrived(readings: pl.DataFrame, *, live: bool) -> pl.DataFrame:
    """Return rows of table `readings`: each record a message that took its time, or a device and day."""
    of_message = ["device", "event_time"] if live else ["device", "day"]
    rows = readings.with_columns(day=pl.col("event_time").dt.truncate("1d"))
    messages = rows.select(of_message).unique().sort(of_message[::-1])
    delays = pl.Series(np.random.default_rng(7).integers(0, MOST_DELAY_US, len(messages)))
    arrival = (
        pl.col("event_time") + delays.cast(pl.Duration("us")) if live else pl.lit(datetime(2026, 1, 1, tzinfo=UTC))
    )
    messages = messages.with_columns(arrival_time=arrival).sort("arrival_time", maintain_order=True)
    messages = messages.with_columns(sequence=pl.int_range(1, pl.len() + 1))
    return (
        rows.join(messages, on=of_message)
        .with_columns(replay=0, year=pl.col("event_time").dt.year())
        .select([pl.col(name).cast(kind) for name, kind in SCHEMAS["readings"].items()])
        .sort("sequence", "event_time", "metric")
    )


def _lake(rows: pl.DataFrame) -> float:
    """Bytes a reading of the files that compaction makes, all columns of table `readings` in them."""
    years = rows.partition_by("year", include_key=False)
    return round(sum(len(encode(year, LAYOUTS["readings"])) for year in years) / len(rows), 3)


def _write_rows_s(rows: pl.DataFrame) -> int:
    """Rows a second that commits write, sorted and with names as `Enum` as they are then, to a table on this disk."""
    names = {name: pl.Enum(rows[name].unique().sort()) for name in NAMES}
    ordered = rows.with_columns(pl.col(name).cast(kind) for name, kind in names.items()).sort(STORED)
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as folder:
        empty = rows[:0].to_arrow(compat_level=pl.CompatLevel.oldest())
        write_deltalake(folder, empty, partition_by=PARTITIONS["readings"])
        table = DeltaTable(folder)

        def put(path: str, data: bytes) -> None:
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_bytes(data)

        began = time.perf_counter()
        files.append(table, ordered, PARTITIONS["readings"], put, CommitProperties())
        seconds = time.perf_counter() - began
        stored = pl.read_delta(folder).sort(STORED)
        assert stored.equals(rows.sort(STORED)), "what was written is not what was read"
    return round(len(rows) / seconds)


def _parquet(readings: pl.DataFrame) -> int:
    buffer = io.BytesIO()
    pq.write_table(readings.sort("event_time", "device").to_arrow(compat_level=pl.CompatLevel.oldest()), buffer)
    return buffer.tell()


def _json_lines(readings: pl.DataFrame) -> int:
    return len(readings.with_columns(pl.col("event_time").dt.to_string("iso:strict")).write_ndjson())


def _csv_gz(readings: pl.DataFrame) -> int:
    return len(gzip.compress(readings.sort(KEY).write_csv().encode(), compresslevel=6))


def _xz_columns(readings: pl.DataFrame) -> int:
    """Each column of the sorted readings by itself, binary, under xz -9."""
    ordered = readings.sort("metric", "device", "event_time")
    codes = ordered.select(pl.col("device", "metric").rank("dense").cast(pl.UInt16), "event_time", "value")
    columns = [codes[name].to_physical().to_numpy().tobytes() for name in codes.columns]
    return sum(len(lzma.compress(column, preset=9)) for column in columns)


_PEERS: Final[dict[str, Callable[[pl.DataFrame], int]]] = {
    "json lines": _json_lines,
    "csv.gz": _csv_gz,
    "parquet, defaults, as it arrived": _parquet,
    "xz -9 of the sorted columns": _xz_columns,
}
