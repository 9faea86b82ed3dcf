"""Rows a second that a suite validates at 10 M readings, Great Expectations' report included.

Ten usual checks on long readings (device, metric, event_time, value), 17 expectations, 10 of them on one metric each;
six are not met. Each figure is the median of several runs, in a process of its own so that it has its own peak of
memory. All contenders check the same; where they report verdicts, these are compared.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks.figure import Figure

ROWS: Final = {"2m": 2_000_000, "10m": 10_000_000}
REPEATS: Final = 7
SLOW_REPEATS: Final = 3  # of peers that take seconds
METRICS: Final = tuple(f"channel_{number}" for number in range(8))
DEVICES: Final = tuple(f"turbine-{number:04d}" for number in range(250))
START: Final = datetime(2024, 1, 1, tzinfo=UTC)
LAST: Final = START + timedelta(days=1)
# Each metric has its own level and bounds; odd ones have values beyond them.
LEVELS: Final = {metric: 20.0 + 10 * number for number, metric in enumerate(METRICS)}
BOUNDS: Final = {metric: (level - 45, level + 40) for metric, level in LEVELS.items()}
MOST_MEAN: Final = 40.0
LEAST_STDEV: Final = 1.0
LEAST_SHARE: Final = 0.99  # of values that are not null; 0.2 % are
RARE: Final = 10_000  # of every so many rows one is too high, of an unknown device, too late, or there twice


def measure() -> Figure:
    """Measure every contender."""
    found = {
        f"{contender}_{size}": _child(contender, rows, REPEATS if contender in _QUICK else SLOW_REPEATS)
        for contender in _CONTENDERS
        for size, rows in ROWS.items()
        if (contender, size) not in _LEFT_OUT
    }
    ours, pandas = found["polars_10m"], found["pandas_2m"]
    further: dict[str, Any] = {
        f"{name}_{field}": one[field] for name, one in found.items() for field in ("rows_per_s", "spread", "peak_gb")
    }
    verdicts = [one["verdicts"] for one in found.values() if "verdicts" in one]
    return Figure(
        figure=ours["rows_per_s"],
        unit="rows/s",
        peer="Great Expectations on pandas, 2 M readings; ratio at 2 M",
        ratio=round(found["polars_2m"]["rows_per_s"] / pandas["rows_per_s"], 1),
        further={
            "rows_per_s_2m": found["polars_2m"]["rows_per_s"],
            "rows_per_s_10m": ours["rows_per_s"],
            "peak_gb": ours["peak_gb"],
            "expectations": len(ours["verdicts"]),
            "unmet": ours["verdicts"].count(False),
            "same_verdicts": all(one == verdicts[0] for one in verdicts),
            **further,
        },
    )


def readings(rows: int) -> pl.DataFrame:
    """Return readings in order of device, time and metric, some of which do not fit: see `RARE`."""
    random = np.random.default_rng(7)
    steps = -(-rows // (len(DEVICES) * len(METRICS)))
    times = pl.DataFrame({"event_time": [START + timedelta(seconds=step) for step in range(steps)]})
    levels = pl.DataFrame({"metric": METRICS, "level": list(LEVELS.values())})
    keys = pl.DataFrame({"device": DEVICES}).join(times, how="cross").join(levels, how="cross").head(rows)
    number = pl.int_range(pl.len())
    rare = (number // len(METRICS)) % RARE  # of a record, all metrics have the same
    odd = number % 2 == 1
    value = pl.Series("value", random.normal(0, 4, keys.height).round(2)) + keys["level"]
    frame = keys.with_columns(value).with_columns(
        value=pl.when(number % 500 == 7).then(None).when(odd & (rare == 0)).then(1000.0).otherwise("value"),
        device=pl.when(rare == 10).then(pl.lit("nobody")).otherwise("device"),
        event_time=pl.when(rare == 20).then(pl.col("event_time") + pl.duration(days=2)).otherwise("event_time"),
    )
    twice = pl.when(rare == 31).then(pl.col("event_time").shift(len(METRICS))).otherwise("event_time")
    return frame.with_columns(event_time=twice).select("device", "metric", "event_time", "value")


def checks() -> list[tuple[str, dict[str, Any]]]:
    """Return the ten checks: 17 expectations."""
    between = "expect_column_values_to_be_between"
    return [
        ("expect_table_columns_to_match_ordered_list", {"column_list": ["device", "metric", "event_time", "value"]}),
        ("expect_table_row_count_to_be_between", {"min_value": 1}),
        ("expect_compound_columns_to_be_unique", {"column_list": ["device", "metric", "event_time"]}),
        ("expect_column_values_to_not_be_null", {"column": "value", "mostly": LEAST_SHARE}),
        ("expect_column_values_to_be_in_set", {"column": "device", "value_set": list(DEVICES)}),
        ("expect_column_values_to_be_in_set", {"column": "metric", "value_set": list(METRICS)}),
        (between, {"column": "event_time", "min_value": START, "max_value": LAST}),
        *(
            (between, {"column": "value", "min_value": low, "max_value": high, "row_condition": _only(metric)})
            for metric, (low, high) in BOUNDS.items()
        ),
        (
            "expect_column_mean_to_be_between",
            {"column": "value", "max_value": MOST_MEAN, "row_condition": _only(METRICS[0])},
        ),
        (
            "expect_column_stdev_to_be_between",
            {"column": "value", "min_value": LEAST_STDEV, "row_condition": _only(METRICS[1])},
        ),
    ]


def _only(metric: str) -> dict[str, Any]:
    return {"type": "comparison", "column": {"name": "metric"}, "operator": "==", "parameter": metric}


def _child(contender: str, rows: int, repeats: int) -> dict[str, Any]:
    """Measure one contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.validate", contender, str(rows), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} at {rows:,} readings ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure_here(contender: str, rows: int, repeats: int) -> dict[str, Any]:
    """Return the median of a few runs and how far they lie apart, after one on few rows that warms up."""
    _CONTENDERS[contender](readings(1000))()
    run = _CONTENDERS[contender](readings(rows))
    seconds, found = [], {}
    for _ in range(repeats):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return {
        "rows_per_s": round(rows / statistics.median(seconds)),
        "spread": round((max(seconds) - min(seconds)) / statistics.median(seconds), 2),
        "peak_gb": round(_peak_bytes() / 2**30, 2),
        **found,
    }


def _peak_bytes() -> int:
    """Return the process's largest memory so far, the readings included."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _great_expectations(kind: Any, result_format: str) -> Callable[[pl.DataFrame], Any]:
    """Return a contender: a checkpoint of Great Expectations, results and their JSON included."""

    def prepare(frame: pl.DataFrame) -> Callable[[], dict[str, Any]]:
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

        from expectations.polars_engine.workbench import Workbench

        configured = [ExpectationConfiguration(type=name, kwargs=kwargs) for name, kwargs in checks()]
        prepared = Workbench().prepare("readings", configured, result_format, kind)
        given = frame.to_pandas() if kind == "pandas" else frame

        def run() -> dict[str, Any]:
            found = prepared.run(given)
            json.dumps(found.to_json_dict())
            return {"verdicts": [bool(one.success) for one in prepared.in_order(found)]}

        return run

    return prepare


def _fused(frame: pl.DataFrame) -> Callable[[], dict[str, Any]]:
    """The limit: the same counts by hand, in one pass and a sort of hashes, without a report or samples."""
    value, metric = pl.col("value"), pl.col("metric")
    out = {name: ((metric == name) & ~value.is_between(*bounds)).sum().alias(name) for name, bounds in BOUNDS.items()}
    sets = {"device": DEVICES, "metric": METRICS}
    strange = [(~pl.col(name).is_in(list(known))).sum().alias(f"strange_{name}") for name, known in sets.items()]
    late = (~pl.col("event_time").is_between(START, LAST)).sum().alias("late")
    only = [
        value.filter(metric == METRICS[0]).mean().alias("mean"),
        value.filter(metric == METRICS[1]).std().alias("std"),
    ]
    keys = (pl.col("device").hash(0) ^ metric.hash(1) ^ pl.col("event_time").hash(2)).alias("hash")

    def run() -> dict[str, Any]:
        wanted = [pl.len().alias("rows"), value.null_count().alias("nulls"), late, *strange, *only, *out.values()]
        found = frame.lazy().select(wanted).collect().row(0, named=True)
        ordered = frame.lazy().select(keys).select(pl.col("hash").sort())
        twice = ordered.select((pl.col("hash") == pl.col("hash").shift(1)).sum()).collect(engine="streaming").item()
        filled = 1 - found["nulls"] / found["rows"] >= LEAST_SHARE
        counts = [found[name] == 0 for name in ("strange_device", "strange_metric", "late", *out)]
        whole = [frame.columns == ["device", "metric", "event_time", "value"], found["rows"] >= 1]
        last = [found["mean"] <= MOST_MEAN, found["std"] >= LEAST_STDEV]
        return {"verdicts": [*whole, twice == 0, filled, *counts, *last]}

    return run


def _pandera(frame: pl.DataFrame) -> Callable[[], dict[str, Any]]:
    """The same checks in pandera on Polars, failure cases included."""
    import pandera.polars as pa

    def ranged(name: str) -> Any:
        """One metric's bounds; rows without a value are left out, as Great Expectations does."""

        def check(data: Any) -> pl.LazyFrame:
            value = pl.col("value")
            fits = (pl.col("metric") != name) | value.is_null() | value.is_between(*BOUNDS[name])
            found: pl.LazyFrame = data.lazyframe.select(fits)
            return found

        return pa.Check(check, name=name)

    def of_all(name: str, expression: pl.Expr) -> Any:
        return pa.Check(lambda data: data.lazyframe.select(expression), name=name)

    value, metric = pl.col("value"), pl.col("metric")
    schema = pa.DataFrameSchema(
        {
            "device": pa.Column(pl.String, pa.Check.isin(list(DEVICES), name="device")),
            "metric": pa.Column(pl.String, pa.Check.isin(list(METRICS), name="metric")),
            "event_time": pa.Column(frame.schema["event_time"], pa.Check.in_range(START, LAST, name="event_time")),
            "value": pa.Column(pl.Float64, nullable=True),
        },
        checks=[
            *(ranged(name) for name in METRICS),
            of_all("rows", pl.len() >= 1),
            of_all("filled", value.is_not_null().mean() >= LEAST_SHARE),
            of_all("mean", value.filter(metric == METRICS[0]).mean() <= MOST_MEAN),
            of_all("stdev", value.filter(metric == METRICS[1]).std() >= LEAST_STDEV),
        ],
        unique=["device", "metric", "event_time"],
        ordered=True,
        strict=True,
    )
    names = ["column_ordered", "rows", "multiple_fields_uniqueness", "filled", "device", "metric", "event_time"]
    names += [*METRICS, "mean", "stdev"]

    def run() -> dict[str, Any]:
        try:
            schema.validate(frame, lazy=True)
        except pa.errors.SchemaErrors as exc:
            unmet = {one.check.name if hasattr(one.check, "name") else str(one.check) for one in exc.schema_errors}
            return {"verdicts": [name not in unmet for name in names]}
        return {"verdicts": [True] * len(names)}

    return run


_CONTENDERS: Final[dict[str, Callable[[pl.DataFrame], Any]]] = {
    "polars": _great_expectations("polars", "SUMMARY"),
    "boolean_only": _great_expectations("polars", "BOOLEAN_ONLY"),
    "fused_pass": _fused,
    "pandera": _pandera,
    "pandas": _great_expectations("pandas", "SUMMARY"),
}
_QUICK: Final = ("polars", "boolean_only", "fused_pass")
_LEFT_OUT: Final = (("pandas", "10m"),)  # a minute and 5 GB


if __name__ == "__main__":
    print(json.dumps(_measure_here(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
