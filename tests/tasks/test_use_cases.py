"""Every kind of target from tables to a registered version, with the real lake and the real MLflow."""

import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldloop.domain.document import load
from fieldloop.domain.parts import NO_RUN, runs
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks import labels
from tasks.preprocess import split_up
from tasks.register import challenge, enter, prove
from tasks.results import describe
from tasks.runs import PREDICTIONS
from tasks.train import begin, finish, train_candidate
from tests.tasks.farm import TEXT, FarmSettings, farm, tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

SEED = 7
FORECAST = """
target: {metric: wind_speed, horizon: 2}
candidates: [{algorithm: last_value}, {algorithm: neighbours, rows: 200}]
split: {by: history}
"""
CLASSES = """
target: {kind: class, labels: {file: noted.csv}, classes: [calm, rough, storm], otherwise: calm}
candidates: [{algorithm: xgboost, trees: 10, calibrated: true}]
"""
ANOMALY = """
target: {kind: anomaly, quantile: 0.99, labels: {file: noted.csv}}
candidates: [{algorithm: pca}, {algorithm: isolation_forest, trees: 20}]
promotion: {metric: auc}
"""
COUNTDOWN = """
target: {kind: time_to_event, labels: {file: noted.csv}, unit: h, cap: 6}
candidates: [{algorithm: elastic_net}, {algorithm: mean}]
split: {by: run, gap_steps: 5, test_share: 0.3, validation_share: 0.3}
"""


CASES = {"forecast": FORECAST, "classes": CLASSES, "anomaly": ANOMALY, "countdown": COUNTDOWN}


def use_case(platform: Settings, folder: Path, name: str, parts: str) -> FarmSettings:
    """The farm with parts of its recipe replaced, and strong wind noted."""
    settings = farm(platform, folder, name)
    text = re.sub(r"candidates:\n(  .*\n)+promotion: .*\n", "", TEXT).replace("NAME", name)
    for key in re.findall(r"^(\w+):", parts, re.MULTILINE):
        text = re.sub(rf"^{key}: .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("[level, trend]", "[level, spread, trend]")
    (folder / "recipes" / f"{name}.yaml").write_text(text + parts)
    label = pl.when(pl.col("wind_speed") > 15).then(pl.lit("storm")).otherwise(pl.lit("rough"))
    strong = grid().filter(pl.col("wind_speed") > 12).select("device", label=label, start="step_time")
    noted = strong if "rough" in parts else strong.filter(pl.col("label") == "storm")
    noted.with_columns(pl.col("start").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_csv(folder / "noted.csv")
    return settings


def grid() -> pl.DataFrame:
    """The farm's grid without each tenth day, so that there are runs."""
    whole = tables(load(Recipe, TEXT.replace("NAME", "tiny"), "r.yaml"))[0]
    return whole.filter(pl.col("step_time").dt.ordinal_day() % 10 != 0)


def write_tables(settings: FarmSettings, name: str) -> tuple[int, int]:
    """Write grid and windows with the targets that the recipe asks for."""
    recipe, lake = load_recipe(settings.root, name), Lake(settings)
    noted = labels.read_labels(settings, lake, recipe).intervals
    indices = []
    for (device,), rows in grid().group_by("device", maintain_order=True):
        ends = np.arange(recipe.window.length - 1, len(rows))
        begun = pl.Series(runs(recipe, rows["step_time"].to_physical().to_numpy() // recipe.step_us, None)[ends])
        run_time = begun.cast(pl.Datetime("us")).dt.replace_time_zone("UTC").set(begun == NO_RUN, None)
        target = pl.Series(labels.targets(recipe, rows, ends, str(device), noted))
        indices.append(rows[ends].select("device", end_time="step_time", run_time=run_time, target=target))
    windows = split_up(recipe, pl.concat(indices))
    return lake.replace(f"grid/{name}", grid()), lake.replace(f"windows/{name}", windows)


@pytest.mark.parametrize("case", CASES)
def test_from_tables_to_a_version(platform: Settings, tmp_path: Path, case: str) -> None:
    """Every candidate is fitted, proved and registered; the best beats the baseline; predictions are kept by window."""
    name = f"case-{case}"
    settings = use_case(platform, tmp_path, name, CASES[case])
    recipe = load_recipe(settings.root, name)
    training = begin(settings, name, [], *write_tables(settings, name), SEED)
    results = [train_candidate(settings, training, algorithm, SEED) for algorithm in training.algorithms]
    result = finish(settings, training, results)
    assert all(f"| {entry.algorithm}" in describe(result).replace("**", "") for entry in results)
    for entry in results:
        proved = prove(settings, name, entry.run_id)
        assert proved.certificate.passed
        assert proved.certificate.label_flips == 0
        challenge(settings, proved, enter(settings, proved).version)
        data = registry.run_artifact(settings, entry.run_id, PREDICTIONS)
        kept = pl.read_parquet(io.BytesIO(data))
        assert kept["part"].unique().sort().to_list() == ["test", "validation"]
        assert len(kept.columns) == 4 + recipe.width
        assert kept["prediction"].is_finite().all()
    assert registry.find(settings, name, "champion") is not None
    if case == "classes":
        assert result.best.metrics["auc"] > 0.9
    if case == "anomaly":
        assert result.best.metrics["auc"] > 0.65
