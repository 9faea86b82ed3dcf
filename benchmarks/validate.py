"""Rows a second that a suite validates at 10 M readings, Great Expectations' report included.

Ten usual checks on long readings (device, metric, event_time, value), 17 expectations, 10 of them on one metric each.
"""

import json
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
REPEATS: Final = 3
METRICS: Final = tuple(f"channel_{number}" for number in range(8))
DEVICES: Final = tuple(f"turbine-{number:04d}" for number in range(250))
START: Final = datetime(2024, 1, 1, tzinfo=UTC)


def measure() -> Figure:
    """Measure every contender in a process of its own, so that each has its own peak of memory."""
    ours = {name: _child("polars", rows, REPEATS) for name, rows in ROWS.items()}
    boolean = _child("boolean", ROWS["10m"], REPEATS)
    fused = _child("fused", ROWS["10m"], REPEATS)
    pandera = _child("pandera", ROWS["10m"], REPEATS)
    pandas = _child("pandas", ROWS["2m"], 1)
    return Figure(
        figure=ours["10m"]["rows_per_s"],
        unit="rows/s",
        peer="Great Expectations on pandas, 2 M readings; ratio at 2 M",
        ratio=round(ours["2m"]["rows_per_s"] / pandas["rows_per_s"], 1),
        further={
            "rows_per_s_2m": ours["2m"]["rows_per_s"],
            "rows_per_s_10m": ours["10m"]["rows_per_s"],
            "peak_gb": ours["10m"]["peak_gb"],
            "rows_per_s_10m_boolean_only": boolean["rows_per_s"],
            "pandas_rows_per_s_2m": pandas["rows_per_s"],
            "pandas_peak_gb_2m": pandas["peak_gb"],
            "pandera_rows_per_s_10m": pandera.get("rows_per_s"),
            "fused_pass_rows_per_s_10m": fused["rows_per_s"],
            "expectations": ours["10m"]["expectations"],
            "unmet": ours["10m"]["unmet"],
            "same_verdicts_as_pandas": ours["2m"]["verdicts"] == pandas["verdicts"],
        },
    )


def readings(rows: int) -> pl.DataFrame:
    """Return readings in order of device, time and metric; in two metrics of eight a few are out of range."""
    random = np.random.default_rng(7)
    steps = -(-rows // (len(DEVICES) * len(METRICS)))
    times = pl.DataFrame({"event_time": [START + timedelta(seconds=step) for step in range(steps)]})
    frame = (
        pl.DataFrame({"device": DEVICES}).join(times, how="cross").join(pl.DataFrame({"metric": METRICS}), how="cross")
    )
    value = pl.Series("value", random.normal(20, 4, frame.height)).scatter(range(0, frame.height, 100_004), 1000.0)
    return frame.with_columns(value).select("device", "metric", "event_time", "value").head(rows)


def checks() -> list[tuple[str, dict[str, Any]]]:
    """Return the ten checks: 17 expectations."""
    last = START + timedelta(days=1)
    between = "expect_column_values_to_be_between"
    return [
        ("expect_table_columns_to_match_ordered_list", {"column_list": ["device", "metric", "event_time", "value"]}),
        ("expect_table_row_count_to_be_between", {"min_value": 1}),
        ("expect_compound_columns_to_be_unique", {"column_list": ["device", "metric", "event_time"]}),
        ("expect_column_values_to_not_be_null", {"column": "value", "mostly": 0.99}),
        ("expect_column_values_to_be_in_set", {"column": "device", "value_set": list(DEVICES)}),
        ("expect_column_values_to_be_in_set", {"column": "metric", "value_set": list(METRICS)}),
        (between, {"column": "event_time", "min_value": START, "max_value": last}),
        *(
            (between, {"column": "value", "min_value": -50, "max_value": 90, "row_condition": _only(metric)})
            for metric in METRICS
        ),
        ("expect_column_mean_to_be_between", {"column": "value", "max_value": 40, "row_condition": _only(METRICS[0])}),
        ("expect_column_stdev_to_be_between", {"column": "value", "min_value": 1, "row_condition": _only(METRICS[1])}),
    ]


def _only(metric: str) -> dict[str, Any]:
    return {"type": "comparison", "column": {"name": "metric"}, "operator": "==", "parameter": metric}


def _child(contender: str, rows: int, repeats: int) -> dict[str, Any]:
    """Measure one contender in a process of its own; empty where its library is not installed."""
    command = [sys.executable, "-m", "benchmarks.validate", contender, str(rows), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} at {rows:,} readings ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure_here(contender: str, rows: int, repeats: int) -> dict[str, Any]:
    """Return the best of a few runs, after one on few rows that warms up."""
    run = _CONTENDERS[contender](readings(1000))
    if run is None:
        return {}
    run()
    run = _CONTENDERS[contender](readings(rows))
    seconds, found = [], {}
    for _ in range(repeats):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return {"rows_per_s": round(rows / min(seconds)), "peak_gb": round(_peak_bytes() / 2**30, 2), **found}


def _peak_bytes() -> int:
    """Return the process's largest memory so far, the readings included."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _great_expectations(kind: str, result_format: str) -> Callable[[pl.DataFrame], Any]:
    """Return a contender: a checkpoint of Great Expectations, results and their JSON included."""

    def prepare(frame: pl.DataFrame) -> Callable[[], dict[str, Any]]:
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

        import expectations.polars_engine  # noqa: F401 - before the context

        config = DataContextConfig(
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        )
        context = gx.get_context(mode="ephemeral", project_config=config)
        source = getattr(context.data_sources, f"add_{kind}")("lake")
        configured = [ExpectationConfiguration(type=name, kwargs=kwargs) for name, kwargs in checks()]
        suite = context.suites.add(gx.ExpectationSuite("readings", expectations=configured))
        batch = source.add_dataframe_asset("readings").add_batch_definition_whole_dataframe("new")
        named = {"name": "readings"}
        definition = context.validation_definitions.add(gx.ValidationDefinition(data=batch, suite=suite, **named))
        checkpoint = gx.Checkpoint(validation_definitions=[definition], result_format=result_format, **named)
        checkpoint = context.checkpoints.add(checkpoint)
        given = frame.to_pandas() if kind == "pandas" else frame

        def run() -> dict[str, Any]:
            result = checkpoint.run(batch_parameters={"dataframe": given})
            (found,) = result.run_results.values()
            json.dumps(found.to_json_dict())
            by_id = {one.expectation_config.id: one for one in found.results}
            verdicts = [bool(by_id[one.id].success) for one in suite.expectations]
            return {"verdicts": verdicts, "unmet": verdicts.count(False), "expectations": len(verdicts)}

        return run

    return prepare


def _fused(frame: pl.DataFrame) -> Callable[[], dict[str, Any]]:
    """The limit: the same counts by hand, in one pass and a sort of hashes, without a report."""
    value, metric = pl.col("value"), pl.col("metric")
    out = {name: ((metric == name) & ~value.is_between(-50, 90)).sum() for name in METRICS}
    sets = {"device": DEVICES, "metric": METRICS}
    strange = [(~pl.col(name).is_in(list(known))).sum().alias(f"strange_{name}") for name, known in sets.items()]
    late = (~pl.col("event_time").is_between(START, START + timedelta(days=1))).sum().alias("late")
    only = [
        value.filter(metric == METRICS[0]).mean().alias("mean"),
        value.filter(metric == METRICS[1]).std().alias("std"),
    ]
    keys = pl.struct("device", "metric", "event_time").hash().alias("hash")

    def run() -> dict[str, Any]:
        frame.lazy().select(pl.len(), value.null_count().alias("nulls"), late, *strange, *only, **out).collect()
        ordered = frame.lazy().select(keys).select(pl.col("hash").sort())
        ordered.select((pl.col("hash") == pl.col("hash").shift(1)).sum()).collect(engine="streaming")
        return {}

    return run


def _pandera(frame: pl.DataFrame) -> Callable[[], dict[str, Any]] | None:
    """The same checks in pandera on Polars; None where it is not installed."""
    try:
        import pandera.polars as pa
    except ImportError:
        return None

    def ranged(name: str) -> Any:
        def check(data: Any) -> pl.LazyFrame:
            return data.lazyframe.select((pl.col("metric") != name) | pl.col("value").is_between(-50, 90))

        return pa.Check(check)

    def statistic(expression: pl.Expr) -> Any:
        return pa.Check(lambda data: data.lazyframe.select(expression))

    value, metric = pl.col("value"), pl.col("metric")
    schema = pa.DataFrameSchema(
        {
            "device": pa.Column(pl.String, pa.Check.isin(list(DEVICES))),
            "metric": pa.Column(pl.String, pa.Check.isin(list(METRICS))),
            "event_time": pa.Column(frame.schema["event_time"], pa.Check.in_range(START, START + timedelta(days=1))),
            "value": pa.Column(pl.Float64, nullable=True),
        },
        checks=[
            *(ranged(name) for name in METRICS),
            statistic(pl.len() >= 1),
            statistic(value.is_not_null().mean() >= 0.99),
            statistic(value.filter(metric == METRICS[0]).mean() <= 40),
            statistic(value.filter(metric == METRICS[1]).std() >= 1),
        ],
        unique=["device", "metric", "event_time"],
        ordered=True,
    )

    def run() -> dict[str, Any]:
        try:
            schema.validate(frame, lazy=True)
        except pa.errors.SchemaErrors as exc:
            return {"unmet": len(exc.schema_errors)}
        return {"unmet": 0}

    return run


_CONTENDERS: Final[dict[str, Callable[[pl.DataFrame], Any]]] = {
    "polars": _great_expectations("polars", "SUMMARY"),
    "boolean": _great_expectations("polars", "BOOLEAN_ONLY"),
    "pandas": _great_expectations("pandas", "SUMMARY"),
    "fused": _fused,
    "pandera": _pandera,
}


if __name__ == "__main__":
    print(json.dumps(_measure_here(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
