"""The Numenta Anomaly Benchmark's data as the platform reads it, and its score of a run's alarms."""

import io
import json
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import zstandard

from fieldloop.domain.nab import Series, score
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from tasks.runs import PREDICTIONS

STEP: Final = "5m"  # grid step of recipe `nab`


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive, and write its labelled windows as the intervals that a recipe reads."""
    with (
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as plain,
        tarfile.open(fileobj=plain, mode="r|") as members,
    ):
        members.extractall(folder, filter="data")
    rows = [(device, first, last) for device, spans in _windows(folder).items() for first, last in spans]
    pl.DataFrame(rows, schema=["device", "start", "end"], orient="row").write_csv(folder / "windows.csv")


def standard_score(settings: Settings, run_id: str) -> float:
    """Return the normalised score under the standard profile of a run's alarms in its test windows."""
    data = registry.run_artifact(settings, run_id, PREDICTIONS)
    found = pl.read_parquet(io.BytesIO(data)).filter(pl.col("part") == "test", pl.col("prediction") >= 1)
    folder = settings.root / "datasets" / "nab"
    windows = _windows(folder)
    return score([_series(path, found, windows[path.stem]) for path in sorted(folder.glob("data/*/*.csv"))])


def _windows(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """The labelled windows of each series."""
    labelled = json.loads((folder / "labels" / "combined_windows.json").read_text())
    return {Path(name).stem: [(first, last) for first, last in spans] for name, spans in labelled.items()}


def _series(path: Path, alarms: pl.DataFrame, windows: list[tuple[str, str]]) -> Series:
    """A series' records; of several in one grid step the last one has the step's alarm."""
    times = pl.read_csv(path)["timestamp"].str.to_datetime(time_unit="us").sort().dt.replace_time_zone("UTC")
    records = pl.DataFrame({"time": times}).with_columns(step=pl.col("time").dt.truncate(STEP))
    last = pl.col("step") != pl.col("step").shift(-1, fill_value=datetime.max.replace(tzinfo=times[0].tzinfo))
    raised = alarms.filter(pl.col("device") == path.stem)["end_time"]
    alarm = records.select(last & pl.col("step").is_in(raised.implode()))["step"].to_numpy()
    spans = [(_us(first), _us(last)) for first, last in windows]
    return Series(times.to_physical().to_numpy(), alarm, spans)


def _us(text: str) -> int:
    return int(np.datetime64(datetime.fromisoformat(text), "us").astype(np.int64))
