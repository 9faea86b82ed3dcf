"""Seconds of each stage of the loop on two years of four turbines, and how much of them is orchestration."""

import os
import tempfile
import time

from rich.console import Console

from benchmarks.figure import Figure
from fieldloop.cli.demo import run_demo
from fieldloop.stores.settings import Settings
from infra.local import platform


def measure() -> Figure:
    """Go once round the loop on a fresh platform; the peer is the same steps without what lies between them.

    `overhead_s` is the time of the lifecycle's run, from its trigger to its end, less the time spent in tasks: the
    start of the process, imports, states, results and artifacts.
    """
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as folder:
        os.environ |= {"FIELDLOOP_DATA_DIR": f"{folder}/data", "FIELDLOOP_KEYS_DIR": f"{folder}/keys"}
        settings = Settings()
        began = time.monotonic()
        platform.up(settings, lambda _state: None, lambda _names, _seconds: None)
        up_s = time.monotonic() - began
        try:
            demo = run_demo(settings, Console(stderr=True))
        finally:
            platform.down(settings)
    if demo.wrong or demo.lifecycle is None:
        raise SystemExit("; ".join(demo.wrong))
    run = demo.lifecycle
    return Figure(
        figure=round(run.wall_s, 1),
        unit="s",
        peer="the same steps alone: seconds spent in tasks",
        ratio=round(run.wall_s / run.task_seconds, 3),
        further={
            "overhead_s": round(run.wall_s - run.task_seconds, 1),
            "stages_s": {stage.name: round(stage.seconds, 1) for stage in run.stages},
            "tasks_s": {stage.name: round(stage.task_seconds, 1) for stage in run.stages},
            "up_s": round(up_s, 1),
            "outcomes": [[what, outcome] for what, outcome, _ in demo.rows],
        },
    )
