"""Seconds and memory of windows and features over 2, 20 and 200 million readings of a growing fleet.

Readings are made up and written to a fresh lake on a real object store. Then, in a process of its own, what the flows
do: *preprocess* (grid and index of windows), and the features of all training windows, a float32 matrix. `slope` is
that of the logarithm of the seconds over that of the readings (1 is linear), `peak_gb` the largest process's. At the
smallest size the same is done by the same recipe with `engine: dask` on a cluster of two worker processes: `dask` says
whether grid, index and features came out the same to the last bit, and the seconds. `FIELDLOOP_SCALE` names other sizes
in millions of readings, such as `2,20`.
"""

import hashlib
import math
import os
import resource
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks.figure import Figure
from benchmarks.plant import MACHINE, MACHINES, grounds, worker
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS, TIME
from infra.local import store

STEPS: Final = 80_000  # of a device, one a second; 400,000 readings
DEVICES_A_COMMIT: Final = 10
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
RECIPE: Final = """\
name: {name}
engine: {engine}
description: One channel from the four others.
profiles: [bench]
channels: [{{metric: flow, valid: [-500, 500]}}, {{metric: load}}, {{metric: pressure}}, {{metric: speed}}]
target: {{metric: temperature}}
grid: {{step_s: 1}}
window: {{length: 60, stride: 10}}
features: [level, spread, quantiles, trend]
split: {{train_until: 2026-01-01T18:00:00Z, test_until: 2027-01-01T00:00:00Z}}
candidates: [{{algorithm: xgboost, trees: 50}}]
parity: {{limit: 1}}
"""


def measure() -> Figure:
    """Grow the fleet and measure at each size."""
    millions = [int(size) for size in os.environ.get("FIELDLOOP_SCALE", "2,20,200").split(",")]
    sizes: dict[str, dict[str, Any]] = {}
    dask: dict[str, Any] = {}
    with grounds((store.spec,), _documents()) as settings:
        fed = 0
        for size in millions:
            devices = max(1, size * 1_000_000 // (STEPS * len(MACHINE)))
            began = time.perf_counter()
            _feed(settings, range(fed, devices))
            fed = devices
            fed_s = round(time.perf_counter() - began, 1)
            found = _measured(settings, "local")
            digest = found.pop("digest")
            if not sizes:
                spread = _on_cluster(settings)
                dask = {"same": spread.pop("digest") == digest, **spread}
            sizes[str(size)] = {"feed_s": fed_s, **found}
    first, last = sizes[str(millions[0])], sizes[str(millions[-1])]
    growth = math.log(last["readings"] / first["readings"]) or math.nan
    seconds = [each["preprocess_s"] + each["features_s"] for each in (first, last)]
    further: dict[str, Any] = {
        "sizes": sizes,
        "peak_gb": max(each["peak_gb"] for each in sizes.values()),
        "slope": round(math.log(seconds[1] / seconds[0]) / growth, 3),
        "memory_slope": round(math.log(last["peak_gb"] / first["peak_gb"]) / growth, 3),
        "dask": dask,
    }
    return Figure(
        figure=further["peak_gb"],
        unit=f"GB at {millions[-1]} million readings",
        peer=f"the same at {millions[0]} million",
        ratio=round(last["peak_gb"] / first["peak_gb"], 2),
        further=further,
    )


def _on_cluster(settings: Settings) -> dict[str, Any]:
    """The same on two workers, which find the lake by their environment."""
    from distributed import LocalCluster

    os.environ.update(settings.environment())
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        found = _measured(settings.model_copy(update={"dask_url": cluster.scheduler_address}), "dask")
    return {name: found[name] for name in ("digest", "readings", "preprocess_s", "features_s")}


def _measured(settings: Settings, engine: str) -> dict[str, Any]:
    """Run the stages in a process of their own."""
    with worker() as process:
        return process.submit(_stages, settings, f"scale-{engine}").result()


def _stages(settings: Settings, name: str) -> dict[str, Any]:
    from fieldloop.domain.recipe import load_recipe
    from tasks.examples import Versions, read
    from tasks.matrix import features
    from tasks.preprocess import preprocess

    began = time.perf_counter()
    made = preprocess(settings, name)
    cut = time.perf_counter()
    found = read(Lake(settings), load_recipe(settings.root, name), Versions(made.grid_version, made.windows_version))
    matrix = features(found, found.chosen("train"))
    return {
        "digest": hashlib.sha256(found.end_us.tobytes() + found.target.tobytes() + matrix.data).hexdigest(),
        "readings": made.steps * len(MACHINE),
        "windows": made.windows,
        "rows": len(matrix),
        "preprocess_s": round(cut - began, 2),
        "features_s": round(time.perf_counter() - cut, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def _documents() -> dict[str, str]:
    """The profile, and the recipe a way of working."""
    recipes = {
        f"recipes/scale-{engine}.yaml": RECIPE.format(name=f"scale-{engine}", engine=engine)
        for engine in ("local", "dask")
    }
    return {"expectations/profiles/bench.yaml": MACHINES, **recipes}


def _feed(settings: Settings, numbers: Sequence[int]) -> None:
    """Write the readings of more devices, enrolled and validated."""
    lake = Lake(settings)
    names = [f"dev-{number:05}" for number in numbers]
    for start in range(0, len(names), DEVICES_A_COMMIT):
        some = zip(names[start : start + DEVICES_A_COMMIT], numbers[start : start + DEVICES_A_COMMIT], strict=True)
        lake.append("readings", pl.concat([_readings(name, number) for name, number in some]))
    fleet.add_devices(lake, names, "bench")
    rows = {name: pl.lit(None, kind) for name, kind in SCHEMAS["validations"].items()}
    passed = pl.DataFrame({"device": names}).select(
        *(values.alias(name) for name, values in rows.items() if name not in ("device", "passed", "last_sequence")),
        pl.col("device"),
        passed=pl.lit(True),
        last_sequence=pl.lit(2**40, pl.Int64),
    )
    passed = passed.with_columns(last_replay=pl.lit(0, pl.Int64), validated_at=pl.lit(BEGIN).cast(TIME))
    lake.append("validations", passed.select(*SCHEMAS["validations"]))


def _readings(name: str, number: int) -> pl.DataFrame:
    """All readings of a device, by event time and metric; every second a message."""
    random = np.random.default_rng(number)
    values = np.round(random.normal(20, 5, (STEPS, len(MACHINE))), 1)
    seconds = pl.Series(np.repeat(np.arange(STEPS), len(MACHINE)) * 1_000_000).cast(pl.Duration("us"))
    times = pl.DataFrame({"since": seconds}).select(pl.lit(BEGIN).cast(TIME) + pl.col("since")).to_series()
    return pl.DataFrame(
        {
            "device": pl.Series([name]).new_from_index(0, len(times)),
            "metric": list(MACHINE) * STEPS,
            "event_time": times,
            "arrival_time": times,
            "value": values.ravel(),
            "sequence": np.repeat(np.arange(1, STEPS + 1), len(MACHINE)),
            "replay": np.zeros(len(times), dtype=np.int64),
            "year": np.full(len(times), BEGIN.year, dtype=np.int32),
        },
        schema=SCHEMAS["readings"],
    )
