"""Peak memory while a large backlog is drained from the broker into the lake, and while half of it is validated.

Each flow's work runs in a process of its own, as a worker runs it, with all processes that it starts. `figure` is the
larger of the two peaks: the sum of their resident sizes, looked at every 20 ms, so pages that they share count more
than once. Broker and object store are servers beside them, with peaks of their own (`services_gb`). Spooled rows lie
on disk. `FIELDLOOP_BACKLOG` names another size in millions of readings.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
import psutil

from benchmarks.figure import Figure
from benchmarks.plant import BEGIN_MS, DEVICES, MACHINE, MACHINES, data_plane, publish, worker
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings

MILLIONS: Final = "20"
RECORDS: Final = 20  # of a message, one a second
LOOK_S: Final = 0.02
LIMIT_GB: Final = 2.0
GB: Final = 1e9


@dataclass
class Peaks:
    """The largest sums of resident sizes that were seen, in bytes."""

    ours: int = 0
    services: int = 0
    processes: int = 0
    over: Event = field(default_factory=Event)

    def watch(self, process: psutil.Process, services: Sequence[psutil.Process]) -> None:
        """Look until it is over."""
        while not self.over.wait(LOOK_S):
            tree = _tree(process)
            self.processes = max(self.processes, len(tree))
            self.ours = max(self.ours, sum(map(_resident, tree)))
            self.services = max(self.services, sum(map(_resident, services)))


def measure() -> Figure:
    """Fill the stream, drain it, and validate the readings of every other device."""
    readings = int(float(os.environ.get("FIELDLOOP_BACKLOG", MILLIONS)) * 1e6)
    steps = readings // (DEVICES * len(MACHINE) * RECORDS) * RECORDS
    readings = steps * DEVICES * len(MACHINE)
    with data_plane(profile=MACHINES) as settings:
        asyncio.run(publish(settings, _messages(steps)))
        drained = _in_a_process(settings, _drain)
        stored = Lake(settings).scan("readings").select(pl.len()).collect().item()
        if (drained["readings"], stored, drained["refused"]) != (readings, readings, 0):
            raise SystemExit(f"expected {readings:,} readings in the lake, once each; got {stored:,}: {drained}")
        validated = _in_a_process(settings, _validate)
        if validated["readings"] != readings // 2:
            raise SystemExit(f"expected {readings // 2:,} readings to be judged, got {validated['readings']:,}")
    figure = max(drained["peak_gb"], validated["peak_gb"])
    return Figure(
        figure=figure,
        unit="GB of resident memory, the larger peak of the two",
        peer="the limit of 2 GB",
        ratio=round(figure / LIMIT_GB, 3),
        further={"backlog": drained, "validate": validated},
    )


def _messages(steps: int) -> Iterator[tuple[str, bytes]]:
    """Yield what the devices send; each has a record a second."""
    random = np.random.default_rng(7)
    for begin in range(0, steps, RECORDS):
        values = random.integers(0, 400, (DEVICES, RECORDS, len(MACHINE))) / 10
        for device, rows in enumerate(values.tolist()):
            records = [
                {"t": BEGIN_MS + 1000 * (begin + place), **dict(zip(MACHINE, row, strict=True))}
                for place, row in enumerate(rows)
            ]
            yield f"devices.dev-{device:04}.readings", msgspec.json.encode(records)


def _drain(settings: Settings) -> dict[str, Any]:
    """Drain the stream as flow *acquire* does."""
    from tasks.acquire import acquire

    acquired = acquire(settings)
    return {"readings": acquired.readings, "refused": acquired.quarantined + acquired.duplicates}


def _validate(settings: Settings) -> dict[str, Any]:
    """Judge every other device as flow *validate* does."""
    from tasks.unjudged import find_new
    from tasks.validate import enter, judge

    new = find_new(settings, "bench", [f"dev-{number:04}" for number in range(0, DEVICES, 2)], "backlog")
    verdict = judge(settings, new)
    enter(settings, new, verdict)
    return {"readings": verdict.readings, "set_aside": len(verdict.set_aside)}


def _in_a_process(settings: Settings, work: Callable[[Settings], dict[str, Any]]) -> dict[str, Any]:
    """Run it in a process of its own, and watch its memory and that of what it starts."""
    began = time.perf_counter()
    with worker() as process, _watched(process.submit(os.getpid).result()) as peaks:
        found = process.submit(work, settings).result()
    return found | {
        "peak_gb": round(peaks.ours / GB, 3),
        "processes": peaks.processes,
        "services_gb": round(peaks.services / GB, 3),
        "seconds": round(time.perf_counter() - began, 1),
    }


@contextmanager
def _watched(pid: int) -> Iterator[Peaks]:
    peaks = Peaks()
    services = [each for each in psutil.Process().children(recursive=True) if each.pid != pid]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(peaks.watch, psutil.Process(pid), services)
        try:
            yield peaks
        finally:
            peaks.over.set()


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
