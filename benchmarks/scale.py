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
import multiprocessing
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from benchmarks.figure import Figure
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS, TIME
from infra.local import platform
from infra.local import store as store_service
from infra.local.authority import make_authority
from infra.local.keys import make_secrets
from infra.local.stack import start_stack, stop_stack

METRICS: Final = ("flow", "load", "pressure", "speed", "temperature")
STEPS: Final = 80_000  # of a device, one a second; 400,000 readings
DEVICES_A_COMMIT: Final = 10
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
CHANNEL: Final = (
    "  - {{metric: {0}, field: {0}, source_unit: degC, unit: degC, range: [-1000, 1000], rule: mean, "
    "description: {0}}}\n"
)
PROFILE: Final = """\
name: bench
description: Five channels, as plain as can be
manufacturer: none
model: none
format: json
clock: {field: t, kind: epoch_ms}
cadence: 1 s
future_tolerance: 5 min
channels:
"""
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


class _Settings(Settings):
    """Settings with profile and recipe of the benchmark's own."""

    @property
    def root(self) -> Path:
        """The folder with `expectations/profiles` and `recipes`."""
        return self.data_dir


def measure() -> Figure:
    """Grow the fleet and measure at each size."""
    millions = [int(size) for size in os.environ.get("FIELDLOOP_SCALE", "2,20,200").split(",")]
    sizes: dict[str, dict[str, Any]] = {}
    dask: dict[str, Any] = {}
    with _lake() as settings:
        fed = 0
        for size in millions:
            devices = max(1, size * 1_000_000 // (STEPS * len(METRICS)))
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
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_stages, args=(settings.model_dump(), f"scale-{engine}", theirs))
    process.start()
    theirs.close()
    found: dict[str, Any] = ours.recv()
    process.join()
    return found


def _stages(values: dict[str, Any], name: str, answer: Any) -> None:
    from fieldloop.domain.recipe import load_recipe
    from tasks.examples import Versions, read
    from tasks.matrix import features
    from tasks.preprocess import preprocess

    settings = _Settings.model_validate(values)
    began = time.perf_counter()
    made = preprocess(settings, name)
    cut = time.perf_counter()
    found = read(Lake(settings), load_recipe(settings.root, name), Versions(made.grid_version, made.windows_version))
    matrix = features(found, found.chosen("train"))
    answer.send(
        {
            "digest": hashlib.sha256(found.end_us.tobytes() + found.target.tobytes() + matrix.data).hexdigest(),
            "readings": made.steps * len(METRICS),
            "windows": made.windows,
            "rows": len(matrix),
            "preprocess_s": round(cut - began, 2),
            "features_s": round(time.perf_counter() - cut, 2),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        }
    )


@contextmanager
def _lake() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as folder, ExitStack() as stack:
        held = stack.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        stack.close()
        settings = _Settings.model_validate({"data_dir": folder, "store_port": port})
        profiles, recipes = settings.data_dir / "expectations" / "profiles", settings.data_dir / "recipes"
        profiles.mkdir(parents=True)
        recipes.mkdir()
        (profiles / "bench.yaml").write_text(PROFILE + "".join(CHANNEL.format(metric) for metric in METRICS))
        for engine in ("local", "dask"):
            (recipes / f"scale-{engine}.yaml").write_text(RECIPE.format(name=f"scale-{engine}", engine=engine))
        make_secrets(settings)
        make_authority(settings)
        start_stack(settings, platform.PLATFORM, [store_service.spec(settings)])
        try:
            store_service.prepare(settings)
            yield settings
        finally:
            stop_stack(settings, platform.PLATFORM)


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
    values = np.round(random.normal(20, 5, (STEPS, len(METRICS))), 1)
    seconds = pl.Series(np.repeat(np.arange(STEPS), len(METRICS)) * 1_000_000).cast(pl.Duration("us"))
    times = pl.DataFrame({"since": seconds}).select(pl.lit(BEGIN).cast(TIME) + pl.col("since")).to_series()
    return pl.DataFrame(
        {
            "device": pl.Series([name]).new_from_index(0, len(times)),
            "metric": list(METRICS) * STEPS,
            "event_time": times,
            "arrival_time": times,
            "value": values.ravel(),
            "sequence": np.repeat(np.arange(1, STEPS + 1), len(METRICS)),
            "replay": np.zeros(len(times), dtype=np.int64),
            "year": np.full(len(times), BEGIN.year, dtype=np.int32),
        },
        schema=SCHEMAS["readings"],
    )
