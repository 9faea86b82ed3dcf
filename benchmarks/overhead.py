"""Seconds that the flow *train* takes beyond a plain script that does the same fits on the same examples.

The wind farm's two years, recipe `turbine-power`, on a whole platform. The script, in a process of its own, reads the
examples, makes the features, fits each candidate twice as training does (to choose by, and for good), predicts and
judges the held-out windows. The flow is run as a person runs it, by its deployment: `figure` is the time from the
trigger to the end beyond the script's from its start to its end, in the worse of the rounds, and holds the wait for
the worker, the start of the process and its imports (`wait_s`; `script_start_s` is the script's own). What the flow
does more is parity with ONNX, plots, certificates of what it read, the look at a random split, and all that MLflow and
Prefect keep. What the platform runs by the clock is paused, since it would fall into one of the two, or none.
"""

import multiprocessing
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Final

from prefect.client.orchestration import SyncPrefectClient

from benchmarks.figure import Figure
from benchmarks.truth import TruthSettings, lay_out
from fieldloop.cli import runs
from fieldloop.stores.settings import Settings
from infra.local import platform

RECIPE: Final = "turbine-power"
PROFILE: Final = "senvion-mm82"
SOURCE: Final = "wind-farm"
SEEDS: Final = (7, 8)  # a round each; the same seed again would find what is trained already


def measure() -> Figure:
    """Bring the data in, then let script and flow take turns."""
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as name:
        os.environ["FIELDLOOP_DATA_DIR"] = str(Path(name) / "data")
        settings = Settings()
        platform.up(settings, lambda _state: None, lambda _names, _seconds: None)
        try:
            _pause(settings)
            windows = _bring(settings, Path(name) / "root")
            rounds = [_round(settings, seed) for seed in SEEDS]
        finally:
            platform.down(settings)
    worst = max(rounds, key=lambda each: each["beyond_s"])
    return Figure(
        figure=worst["beyond_s"],
        unit="s beyond the script, from trigger to end",
        peer="the same fits in a plain script, from its start to its end",
        ratio=round(worst["flow_s"] / worst["script_s"], 3),
        further={"share": round(worst["beyond_s"] / worst["flow_s"], 3), "windows": windows, "rounds": rounds},
    )


def _pause(settings: Settings) -> None:
    """Pause every deployment that has a schedule."""
    with SyncPrefectClient(api=settings.prefect_api) as client:
        for deployment in client.read_deployments():
            if deployment.schedules:
                client.pause_deployment(deployment.id)


def _bring(settings: Settings, root: Path) -> int:
    """Collect, validate and preprocess the wind farm; return how many windows there are."""
    from tasks.collect import collect
    from tasks.preprocess import preprocess
    from tasks.unjudged import find_new
    from tasks.validate import enter, judge

    lay_out(root, root / "none")
    there = TruthSettings.model_validate({**settings.model_dump(), "folder": root})
    collect(there, SOURCE)
    new = find_new(there, PROFILE, None, str(uuid.uuid4()))
    enter(there, new, judge(there, new))
    return preprocess(settings, RECIPE).windows


def _round(settings: Settings, seed: int) -> dict[str, Any]:
    """Script, then flow."""
    script = _script(settings, seed)
    run = runs.run(settings, "train/train", {"recipe": RECIPE, "seed": seed}, lambda _stage: None)
    (stage,) = run.stages
    return {
        "flow_s": round(run.wall_s, 2),
        "wait_s": round(run.wall_s - stage.seconds, 2),
        "tasks_s": round(stage.task_seconds, 2),
        "between_tasks_s": round(stage.seconds - stage.task_seconds, 2),
        **script,
        "beyond_s": round(run.wall_s - script["script_s"], 2),
        "beyond_in_flow_s": round(stage.seconds - (script["script_s"] - script["script_start_s"]), 2),
    }


def _script(settings: Settings, seed: int) -> dict[str, float]:
    """Run the script in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    began = time.monotonic()
    process = context.Process(target=_fit_all, args=(settings.model_dump(), seed, theirs))
    process.start()
    theirs.close()
    worked: dict[str, float] = ours.recv()
    process.join()
    script_s = time.monotonic() - began
    start_s = script_s - sum(worked.values())
    return {"script_s": round(script_s, 2), "script_start_s": round(start_s, 2), **worked}


def _fit_all(values: dict[str, Any], seed: int, answer: Any) -> None:
    """The script: examples, features, and for each candidate two fits, predictions and metrics; nothing is kept."""
    import numpy as np

    from fieldloop.domain.graph import feature_graph
    from fieldloop.domain.metrics import judge
    from fieldloop.domain.recipe import load_recipe
    from fieldloop.stores.lake import Lake
    from tasks import candidates
    from tasks.examples import Versions, read
    from tasks.matrix import features

    began = time.monotonic()
    settings = Settings.model_validate(values)
    lake, recipe = Lake(settings), load_recipe(settings.root, RECIPE)
    versions = [lake.version(f"{table}/{RECIPE}") or 0 for table in ("grid", "windows")]
    found = read(lake, recipe, Versions(*versions))
    rows = {part: found.chosen(part) for part in ("train", "validation", "test")}
    matrix = {part: features(found, chosen) for part, chosen in rows.items()}
    target = {part: found.target[chosen] for part, chosen in rows.items()}
    names, problem = feature_graph(recipe)[1], candidates.problem(recipe)
    both = {part: np.concatenate([part_of[p] for p in ("train", "validation")]) for part, part_of in
            (("matrix", matrix), ("target", target))}  # fmt: skip
    read_s, began = time.monotonic() - began, time.monotonic()
    for candidate in recipe.candidates:
        first = candidates.fit(candidate, problem, names, matrix["train"], target["train"], seed)
        judge(recipe, target["validation"], first.raw(matrix["validation"]))
        last = candidates.fit(candidate, problem, names, both["matrix"], both["target"], seed)
        judge(recipe, target["test"], last.raw(matrix["test"]))
    answer.send({"script_read_s": round(read_s, 2), "script_fits_s": round(time.monotonic() - began, 2)})
