"""The Numenta Anomaly Benchmark's data as the platform reads it, and its score of a run's alarms."""

import io
import json
import tarfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import zstandard

from fieldloop.domain.nab import Series, best, probation, score
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from tasks.runs import PREDICTIONS

STEP: Final = "5m"  # grid step of recipe `nab`
DAYS: Final = 3.5  # of its windows


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


@dataclass(frozen=True)
class Scored:
    """A run's score under the standard profile, normalised.

    Attributes:
        hindsight: by the threshold that suits the whole corpus best, as the benchmark gives one to each detector.
        threshold: that one, as a share of the recipe's own.
        own: by the recipe's own alarms.
        windows: how many there are.
        found: those of them that the threshold of hindsight finds.
        silent: those in which no record says anything at all.
        false_alarms: records outside that it takes for anomalous.
    """

    hindsight: float
    threshold: float
    own: float
    windows: int
    found: int
    silent: int
    false_alarms: int

    @property
    def fields(self) -> dict[str, float]:
        """For the figure."""
        return {
            "nab_by_the_recipes_own_limits": round(self.own, 2),
            "threshold_in_hindsight": round(self.threshold, 3),
            "windows": self.windows,
            "found": self.found,
            "silent": self.silent,
            "false_alarms": self.false_alarms,
        }

    @property
    def why(self) -> str:
        """What falls short of a perfect detector."""
        missed = self.windows - self.found
        return (
            f"of {self.windows} labelled windows {missed} are missed, in {self.silent} of them no value is new to the "
            f"{DAYS} days before it: one model for 58 series of any scale sees new values, not seasons or shapes that "
            f"break; and {self.false_alarms} records outside are taken for anomalous, as it remembers no alarm"
        )


def standard_score(settings: Settings, run_id: str) -> Scored:
    """Return the score of what a run predicted for its test windows."""
    data = registry.run_artifact(settings, run_id, PREDICTIONS)
    said = pl.read_parquet(io.BytesIO(data)).filter(pl.col("part") == "test")
    folder = settings.root / "datasets" / "nab"
    windows = _windows(folder)
    corpus = [_series(path, said, windows[path.stem]) for path in sorted(folder.glob("data/*/*.csv"))]
    threshold, hindsight = best(corpus)
    counts = np.sum([_counts(series, threshold) for series in corpus], axis=0).tolist()
    return Scored(hindsight, threshold, score(corpus), *counts)


def _counts(series: Series, threshold: float) -> tuple[int, int, int, int]:
    """Windows, those of them that are found and that are silent, and alarms outside."""
    begin = probation(len(series.time_us))
    times, said = series.time_us[begin:], np.nan_to_num(np.asarray(series.score[begin:], dtype=np.float64))
    within = [(times >= first) & (times <= last) for first, last in series.windows]
    most = [float(said[each].max(initial=0)) for each in within]
    outside = ~np.any(within, axis=0) if within else np.ones(len(times), dtype=bool)
    return (
        len(within),
        sum(each >= threshold for each in most),
        sum(each <= 0 for each in most),
        int(np.count_nonzero(outside & (said >= threshold))),
    )


def _windows(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """The labelled windows of each series."""
    labelled = json.loads((folder / "labels" / "combined_windows.json").read_text())
    return {Path(name).stem: [(first, last) for first, last in spans] for name, spans in labelled.items()}


def _series(path: Path, said: pl.DataFrame, windows: list[tuple[str, str]]) -> Series:
    """A series' records; of several in one grid step the last one has what was said of the step."""
    times = pl.read_csv(path)["timestamp"].str.to_datetime(time_unit="us").sort().dt.replace_time_zone("UTC")
    records = pl.DataFrame({"time": times}).with_columns(step=pl.col("time").dt.truncate(STEP))
    last = pl.col("step") != pl.col("step").shift(-1, fill_value=datetime.max.replace(tzinfo=times[0].tzinfo))
    mine = said.filter(pl.col("device") == path.stem).select(step="end_time", said="prediction")
    found = records.with_columns(last=last).join(mine, on="step", how="left", maintain_order="left")
    scores = found.select(pl.when("last").then("said").cast(pl.Float64).fill_null(float("nan")))["said"].to_numpy()
    spans = [(_us(first), _us(last)) for first, last in windows]
    return Series(times.to_physical().to_numpy(), scores, spans)


def _us(text: str) -> int:
    return int(np.datetime64(datetime.fromisoformat(text), "us").astype(np.int64))
