"""Bytes of a retrained champion's graph on the wire: whole, compressed, and as a patch from the one before.

The wind farm's recipe, each of its candidates, trained on 2014 and again a week and a quarter later, as retraining
would. The time to apply a patch is the gateway's, which checks the result by its digest. Where the graphs
are equal a patch is a few bytes; they are not, since every tree is another. The main figure is the champion's after a
week: the candidate that is best on the validation windows.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any, Final

import polars as pl

from benchmarks.figure import Figure
from expectations.profiles import load_profile
from fieldloop.domain.metrics import gain
from fieldloop.domain.patch import NOTHING, apply_patch, make_patch
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.domain.release import File
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import TIME
from infra.local.turbines import source_readings
from tasks.examples import Examples, examples
from tasks.fitting import Fitted, fit
from tasks.materials import prepare
from tasks.preprocess import split_up

UNTIL: Final = datetime(2015, 1, 1, tzinfo=UTC)
LATER: Final = {"week": timedelta(days=7), "quarter": timedelta(days=92)}
SEED: Final = 7
TURNS: Final = 5  # of applying a patch; the median counts


def measure() -> Figure:
    """Train every candidate three times, and make a patch from the first to each of the others."""
    recipe = load_recipe(Settings().root, "turbine-power")
    grid = _grid(recipe)
    before = _fitted(recipe, grid, timedelta())
    after = {name: _fitted(recipe, grid, later) for name, later in LATER.items()}
    sizes = {
        algorithm: {name: _sizes(_bytes(first), _bytes(fitted[algorithm])) for name, fitted in after.items()}
        for algorithm, first in before.items()
    }
    champion = _best(recipe, after["week"])
    main = sizes[champion]["week"]
    return Figure(
        figure=main["patch_bytes"],
        unit="bytes from one champion to the next, a week later",
        peer="the whole graph",
        ratio=round(main["patch_bytes"] / main["full_bytes"], 3),
        further={"champion": champion, **main, "candidates": sizes},
    )


def _grid(recipe: Recipe) -> pl.DataFrame:
    """The farm's two years on the recipe's grid: a column a channel; the source has one value a step."""
    profile = load_profile(Settings().root, recipe.profiles[0])
    metrics = {channel.field: channel.metric for channel in profile.channels}
    readings = source_readings(datetime(2014, 1, 1, tzinfo=UTC), datetime(2016, 1, 1, tzinfo=UTC))
    wide = (
        readings.filter(pl.col("field").is_in(list(metrics)))
        .with_columns(metric=pl.col("field").replace(metrics), step_time=pl.col("event_time").dt.truncate("10m"))
        .pivot("metric", index=["device", "step_time"], values="value", aggregate_function="last")
        .sort("device", "step_time")
        .upsample("step_time", every="10m", group_by="device")
        .with_columns(pl.col("device").forward_fill())
    )
    names = (*recipe.inputs, recipe.target_name)
    return wide.select("device", "step_time", pl.col(names).cast(pl.Float32).fill_null(float("nan")))


def _fitted(recipe: Recipe, grid: pl.DataFrame, later: timedelta) -> dict[str, Fitted]:
    """Every candidate of the recipe, trained on all until a moment, by its name."""
    split = recipe.split.model_copy(update={"train_until": UNTIL + later})
    then = recipe.model_copy(update={"split": split})
    materials = prepare(then, _examples(then, grid))
    return {candidate.algorithm: fit(candidate, materials, SEED) for candidate in then.candidates}


def _examples(recipe: Recipe, grid: pl.DataFrame) -> Examples:
    index = grid.select("device", end_time="step_time", target=recipe.target_name)
    whole = pl.int_range(pl.len()).over("device") >= recipe.window.length - 1
    return examples(recipe, grid, split_up(recipe, index.filter(whole).with_columns(run_time=pl.lit(None, dtype=TIME))))


def _best(recipe: Recipe, fitted: dict[str, Fitted]) -> str:
    metric = recipe.promotion.metric
    best, *others = fitted
    for name in others:
        if gain(metric, fitted[name].validation[metric], fitted[best].validation[metric]) > 0:
            best = name
    return best


def _bytes(fitted: Fitted) -> bytes:
    return bytes(fitted.graph.SerializeToString())


def _sizes(old: bytes, new: bytes) -> dict[str, Any]:
    """Sizes of one step from graph to graph; a patch that is not worth it counts as the whole."""
    began = time.perf_counter()
    patch = make_patch(old, new)
    make_s = time.perf_counter() - began
    alone = make_patch(NOTHING, new)
    smallest = min(filter(None, (patch, alone)), key=len, default=new)
    base = old if smallest is patch else NOTHING
    applied, apply_s = _timed(lambda: apply_patch(base, smallest, File.of(new)) if smallest is not new else new)
    assert applied == new
    return {
        "full_bytes": len(new),
        "compressed_bytes": len(alone or new),
        "patch_bytes": len(patch or new),
        "make_s": round(make_s, 3),
        "apply_s": round(apply_s, 4),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what it gives, and the seconds that it takes, the median of a few turns."""
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        outcome = work()
        seconds.append(time.perf_counter() - began)
    return outcome, median(seconds)
