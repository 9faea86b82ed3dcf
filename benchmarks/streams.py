"""The Numenta Anomaly Benchmark's data as the platform reads it, and its score of a run's alarms."""

import io
import json
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import zstandard
from numpy.typing import NDArray

from fieldloop.domain.alerts import begins
from fieldloop.domain.nab import Series, best, probation, score
from fieldloop.domain.recipe import load_recipe
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from tasks.runs import PREDICTIONS

BEGIN: Final = datetime(2000, 1, 1, tzinfo=UTC)  # of the clock of profile `nab-series`, which counts records from 1
STEP: Final = timedelta(minutes=5)  # from one to the next


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive, and write its labelled windows as the intervals of a recipe, by the records' clock."""
    with (
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as plain,
        tarfile.open(fileobj=plain, mode="r|") as members,
    ):
        members.extractall(folder, filter="data")
    rows = pl.concat([_labelled(path, _windows(folder)[path.stem]) for path in sorted(folder.glob("data/*/*.csv"))])
    rows.write_csv(folder / "windows.csv")


@dataclass(frozen=True)
class Scored:
    """A run's score under the standard profile, normalised.

    Attributes:
        hindsight: by the threshold that suits the whole corpus best, as the benchmark gives one to each detector.
        threshold: that one, as a share of the recipe's own.
        own: by the recipe's own alarms.
        windows: how many there are.
        found: those of them that the threshold of hindsight finds.
        silent: those in which no record says anything at all, but for alarms that go on.
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
            f"of {self.windows} labelled windows {missed} are missed, in {self.silent} of them nothing is unlike the "
            f"records before it that the recipe's window holds, or an earlier alarm goes on; {self.false_alarms} "
            f"records outside are taken for anomalous; and a window found in its middle, where the labelled moment is, "
            f"counts 0.86 of one found at its begin. HTM (70.5) and ARTime (74.9) are told each series' least and "
            f"greatest value beforehand, as the benchmark allows"
        )


def standard_score(settings: Settings, run_id: str) -> Scored:
    """Return the score of what a run predicted for its test windows, alarms held as the recipe holds alerts."""
    data = registry.run_artifact(settings, run_id, PREDICTIONS)
    said = pl.read_parquet(io.BytesIO(data)).filter(pl.col("part") == "test")
    folder = settings.root / "datasets" / "nab"
    windows, hold = _windows(folder), load_recipe(settings.root, "nab").release.alert_hold
    corpus = [_series(path, said, windows[path.stem], hold) for path in sorted(folder.glob("data/*/*.csv"))]
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


def _labelled(path: Path, windows: list[tuple[str, str]]) -> pl.DataFrame:
    """The windows of a series by the records' clock."""
    times = _times(path)
    spans = [np.flatnonzero((times >= _us(first)) & (times <= _us(last))) for first, last in windows]
    moments = [(BEGIN + STEP * int(each[0] + 1), BEGIN + STEP * int(each[-1] + 1)) for each in spans]
    rows = [(path.stem, first.isoformat(), last.isoformat()) for first, last in moments]
    return pl.DataFrame(rows, schema={"device": pl.String, "start": pl.String, "end": pl.String}, orient="row")


def _series(path: Path, said: pl.DataFrame, windows: list[tuple[str, str]], hold: int) -> Series:
    """A series' records in order of time, with what was said of each; 0 where an alarm only goes on."""
    times = _times(path)
    scores = np.full(len(times), np.nan)
    mine = said.filter(pl.col("device") == path.stem).sort("end_time")
    records = ((mine["end_time"] - BEGIN).dt.total_microseconds() // (STEP // timedelta(microseconds=1)) - 1).to_numpy()
    scores[records] = mine["prediction"].to_numpy()
    alarms = records[scores[records] >= 1]
    scores[alarms[~begins(alarms, hold)]] = 0
    order = np.argsort(times, kind="stable")
    return Series(times[order], scores[order], [(_us(first), _us(last)) for first, last in windows])


def _times(path: Path) -> NDArray[np.int64]:
    """Of the records, in the order of the file, microseconds since the epoch."""
    return pl.read_csv(path)["timestamp"].str.to_datetime(time_unit="us").to_physical().to_numpy()


def _us(text: str) -> int:
    return int(np.datetime64(datetime.fromisoformat(text), "us").astype(np.int64))
