"""Training on a small farm, with the real lake and the real MLflow."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe import load_recipe
from fieldloop.domain.release import decode_canary
from fieldloop.domain.windows import WindowSpec
from fieldloop.stores import objects, registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks import candidates
from tasks import train as training_stage
from tasks.candidates import Problem, scikit
from tasks.examples import examples, read, spread_out
from tasks.maintain import close_abandoned
from tasks.matrix import apply, session_of
from tasks.origin import digest
from tasks.results import CandidateResult, describe
from tasks.tags import BEST_RUN, GRAPH_DIGEST
from tasks.train import Training, begin, finish, fit_run, log_run, train_candidate
from tests.tasks.farm import BEGIN, DEVICES, SPLIT, FarmSettings, farm, hours, tables, write_tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-train"
SEED = 7
VARIABLE = "PLANT_API_KEY"
SPLIT_HOUR = (SPLIT - BEGIN).total_seconds() / 3600


@pytest.fixture(scope="module")
def settings(platform: Settings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm's settings."""
    return farm(platform, tmp_path_factory.mktemp("farm"), NAME)


@pytest.fixture(scope="module")
def trained(settings: FarmSettings) -> tuple[Training, list[CandidateResult]]:
    """All candidates, fitted and logged, while another thread reads a variable with a key in it."""
    training = begin(settings, NAME, [], *write_tables(settings, NAME), SEED)
    with pytest.MonkeyPatch.context() as patch, reading(VARIABLE):
        patch.setenv(VARIABLE, "secret")
        return training, [train_candidate(settings, training, name, SEED) for name in training.algorithms]


@contextmanager
def reading(variable: str) -> Iterator[None]:
    """Read a variable of the environment again and again."""
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.001):
            os.environ.get(variable)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def spy(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """Return a list that is going to hold every target that is fitted to."""
    fed: list[np.ndarray[Any, Any]] = []
    real = candidates.fit

    def watched(candidate: Any, of: Any, names: Any, features: Any, target: Any, seed: int) -> candidates.Learner:
        assert len(features) == len(target)
        fed.append(target)
        return real(candidate, of, names, features, target, seed)

    monkeypatch.setattr(candidates, "fit", watched)
    return fed


@pytest.mark.parametrize("algorithm", ["xgboost", "ridge"])
def test_no_row_after_the_split_reaches_training(
    settings: FarmSettings, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """With the hour as target, all that is fitted to ends before the split; what is kept reaches up to it."""
    versions = write_tables(settings, NAME, hours())
    fed = spy(monkeypatch)
    training = begin(settings, NAME, [algorithm], *versions, SEED)
    result = train_candidate(settings, training, algorithm, SEED)
    first, kept, *_ = fed
    assert max(target.max() for target in fed) < SPLIT_HOUR
    assert kept.max() > SPLIT_HOUR - 1
    assert len(first) == result.rows["train"]
    assert len(kept) == result.rows["train"] + result.rows["validation"]


def test_index_with_a_row_on_the_wrong_side(settings: FarmSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that calls one held-out window a training window is refused before anything is fitted."""
    grid_version, _ = write_tables(settings, NAME)
    lake = Lake(settings)
    windows = lake.scan(f"windows/{NAME}").collect()
    row = windows["split"].to_list().index("test")
    spoilt = windows.with_columns(split=pl.Series([*windows["split"][:row], "train", *windows["split"][row + 1 :]]))
    spoilt_version = lake.replace(f"windows/{NAME}", spoilt)
    fed = spy(monkeypatch)
    training = begin(settings, NAME, ["ridge"], grid_version, spoilt_version, SEED)
    with pytest.raises(TrainingError, match=r"1 windows are on the wrong side .* expected 'test', got 'train'"):
        train_candidate(settings, training, "ridge", SEED)
    assert not fed
    child = registry.client(settings).search_runs(
        [training.experiment_id], f"tags.`mlflow.parentRunId` = '{training.run_id}'"
    )
    assert [run.info.status for run in child] == ["FAILED"]


@pytest.mark.parametrize(
    ("end", "split"), [("2015-01-01 00:00", "train"), ("2015-01-01 00:20", "test"), ("2016-01-01 00:00", "test")]
)
def test_window_across_the_split(settings: FarmSettings, end: str, split: str) -> None:
    """A window that holds steps of both sides, or lies behind the test's end, may serve neither."""
    recipe = load_recipe(settings.root, NAME)
    grid, windows = tables(recipe)
    moment = pl.Series([end]).str.to_datetime("%Y-%m-%d %H:%M", time_unit="us", time_zone="UTC")
    run = pl.Series([BEGIN]).cast(moment.dtype)
    extra = pl.DataFrame({"device": ["T1"], "end_time": moment, "target": [1.0], "run_time": run, "split": [split]})
    step = grid[:1].with_columns(step_time=moment)
    later = windows.filter(pl.col("end_time") != moment[0])
    with pytest.raises(TrainingError, match="wrong side of the split"):
        examples(
            recipe,
            pl.concat([grid.filter(pl.col("step_time") != moment[0]), step]),
            pl.concat([later, extra.with_columns(pl.col("target").cast(pl.Float32)).select(later.columns)]),
        )


def test_tables_that_do_not_belong_together(settings: FarmSettings) -> None:
    """A window at a step or of a device that the grid lacks, and a grid without a channel, are named."""
    recipe = load_recipe(settings.root, NAME)
    grid, windows = tables(recipe)
    with pytest.raises(TrainingError, match="device T2 is not in grid"):
        examples(recipe, grid.filter(pl.col("device") == "T1"), windows)
    with pytest.raises(TrainingError, match=r"100 windows of device T1 end at steps that grid/.* does not have"):
        examples(recipe, grid[:4000].vstack(grid[4100:]), windows)
    with pytest.raises(TrainingError, match="expected columns pitch_angle"):
        examples(recipe, grid.drop("pitch_angle"), windows)


def test_every_window_is_counted(settings: FarmSettings) -> None:
    """Train, validation, test, embargo and no target add up to all windows."""
    recipe = load_recipe(settings.root, NAME)
    grid, windows = tables(recipe)
    counts = examples(recipe, grid, windows).counts()
    assert sum(counts.values()) == len(windows)
    assert counts["embargo"] == 2 * 3 * len(DEVICES)  # before validation and before test
    assert counts["no_target"] > 0


def test_chunks_give_the_bits_of_single_windows(
    settings: FarmSettings, trained: tuple[Training, list[CandidateResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree ensemble's graph over many windows in odd chunks and side by side is the graph over each alone."""
    monkeypatch.setattr("tasks.cutting.CHUNK_VALUES", 37 * 3 * 6)
    training, results = trained
    graph = registry.run_graph(settings, results[0].run_id)
    found = read(Lake(settings), load_recipe(settings.root, NAME), training.versions)
    chosen = found.chosen("test")[::7]
    session = session_of(graph)
    alone = [session.run(None, {"window": window[None]})[0] for window in found.windows(chosen)]
    np.testing.assert_array_equal(apply(graph, found, chosen), np.concatenate(alone))


def test_candidates_learn(trained: tuple[Training, list[CandidateResult]]) -> None:
    """Power follows the wind, and trees find out how; candidates come in the recipe's order."""
    _, results = trained
    assert [result.algorithm for result in results] == ["xgboost", "extra_trees", "ridge"]
    assert results[0].metrics["r2"] > 0.9
    assert results[0].metrics["mae"] < results[2].metrics["mae"]


def test_run_carries_all_that_a_release_needs(
    settings: FarmSettings, trained: tuple[Training, list[CandidateResult]]
) -> None:
    """The artifacts are readable as their types, and the graph answers the canary."""
    _, results = trained
    for result in results:
        files = {
            name: registry.run_artifact(settings, result.run_id, f"release/{name}.json")
            for name in ("window", "profiles", "canary", "features", "target")
        }
        spec = msgspec.json.decode(files["window"], type=WindowSpec)
        assert "senvion-mm82" in msgspec.json.decode(files["profiles"], type=dict[str, Profile])
        canary = decode_canary(files["canary"])
        assert canary.inputs.shape == (32, len(spec.channels), spec.length)
        assert np.isnan(canary.inputs).any()
        assert json.loads(files["features"])[0] == "wind_speed.last"
        assert json.loads(files["target"]) == {
            **{"metric": "active_power", "unit": "kW", "tolerance": 0.01},
            "budget": {"memory_bytes": None, "latency_s": 0.5},
            "alerts": {"above": 5000.0, "hold_us": 1_200_000_000},
        }
        session = session_of(registry.run_graph(settings, result.run_id))
        assert np.isfinite(session.run(["prediction"], {"window": canary.inputs})[0]).all()


def test_run_says_what_it_is(settings: FarmSettings, trained: tuple[Training, list[CandidateResult]]) -> None:
    """Parameters, metrics, lineage, data sets, pictures, signature and input example are in MLflow."""
    training, results = trained
    mlflow = registry.client(settings)
    run = mlflow.get_run(results[0].run_id)
    assert run.data.params["trees"] == "30"
    assert run.data.metrics["r2"] == pytest.approx(results[0].metrics["r2"])
    assert set(run.data.metrics) >= {
        "mae",
        "rmse",
        "rows.train",
        "rows.no_target",
        "mae.low",
        "baseline.mean.r2",
        "fit_s",
    }
    assert run.data.tags["mlflow.parentRunId"] == training.run_id
    assert run.data.tags["lineage.windows"] == f"s3://lake/windows/{NAME}@{training.versions.windows}"
    assert {data.dataset.name for data in run.inputs.dataset_inputs} == {f"grid/{NAME}", f"windows/{NAME}"}
    pictures = {file.path for file in mlflow.list_artifacts(run.info.run_id, "plots")}
    assert pictures == {f"plots/{name}.png" for name in ("truth_and_prediction", "residuals", "importance")}


def test_run_says_how_sure_its_figures_are(
    settings: FarmSettings, trained: tuple[Training, list[CandidateResult]]
) -> None:
    """Intervals, baselines and tables by device and by period are logged, and the tables add up to the whole."""
    _, results = trained
    for result in results:
        low, high = result.intervals["mae"]
        assert low < result.metrics["mae"] < high
        figures = registry.client(settings).get_run(result.run_id).data.metrics
        assert figures["baseline.mean.mae"] > result.metrics["mae"]
        assert abs(figures["baseline.mean.r2"]) < 0.01
        tables = {
            name: pl.read_csv(registry.run_artifact(settings, result.run_id, f"evaluation/{name}.csv"))
            for name in ("metrics", "devices", "periods")
        }
        assert tables["metrics"]["metric"].to_list() == ["mae", "rmse", "r2"]
        assert tables["devices"]["device"].to_list() == list(DEVICES)
        for name in ("devices", "periods"):
            weighted = (tables[name]["mae"] * tables[name]["windows"]).sum() / tables[name]["windows"].sum()
            assert weighted == pytest.approx(result.metrics["mae"], rel=1e-4)
        assert tables["periods"]["week"][0] == "2014-12-29"


def test_nothing_logged_is_a_pickle(
    settings: FarmSettings, trained: tuple[Training, list[CandidateResult]], tmp_path: Path
) -> None:
    """All that MLflow keeps of a run, the logged model among it, is text, ONNX, skops, Parquet and pictures."""
    store, kept = (
        objects.client(settings, "mlflow"),
        {".csv", ".json", ".skops", ".onnx", ".parquet", ".png", ".yaml", ".txt"},
    )
    keys = objects.names(store, "mlflow", "")
    mine = [key for key in keys if any(result.run_id in key for result in trained[1])]
    assert len(mine) > 10 * len(trained[1])
    models = [key for key in keys if key.endswith("/model.onnx")]
    assert models
    beside = [key for key in keys if any(key.startswith(model.removesuffix("model.onnx")) for model in models)]
    for key in {*mine, *beside}:
        assert Path(key).suffix in kept or Path(key).name == "MLmodel", key
        assert not objects.get(store, "mlflow", key).startswith(b"\x80"), key  # how a binary pickle begins


def test_a_logged_model_names_no_variable_of_the_environment(
    settings: FarmSettings, trained: tuple[Training, list[CandidateResult]]
) -> None:
    """MLflow would list those with keys in them that any thread reads while the model is tried: that is off."""
    store = objects.client(settings, "mlflow")
    for result in trained[1]:
        (model,) = registry.client(settings).get_run(result.run_id).outputs.model_outputs
        files = {key for key in objects.names(store, "mlflow", "") if model.model_id in key}
        named = [key for key in files if VARIABLE.encode() in objects.get(store, "mlflow", key)]
        assert (len(files) > 4, named) == (True, [])


def test_best_candidate_closes_the_training(
    settings: FarmSettings, trained: tuple[Training, list[CandidateResult]]
) -> None:
    """The parent names the best run, and the report lists all with the best first."""
    training, results = trained
    result = finish(settings, training, results)
    assert result.best.validation["mae"] == min(entry.validation["mae"] for entry in results)
    parent = registry.client(settings).get_run(training.run_id)
    assert parent.data.tags[BEST_RUN] == result.best.run_id
    assert parent.info.status == "FINISHED"
    assert f"| **{result.best.algorithm}** |" in describe(result)


def test_same_seed_gives_the_same_graph(
    settings: FarmSettings, trained: tuple[Training, list[CandidateResult]]
) -> None:
    """Training twice from the same table versions gives one graph, bit for bit."""
    training, results = trained
    again = train_candidate(settings, training, "xgboost", SEED)
    graphs = [registry.run_graph(settings, run_id) for run_id in (results[0].run_id, again.run_id)]
    assert graphs[0] == graphs[1]


def test_unknown_candidate_and_version(settings: FarmSettings) -> None:
    """What is asked for and not there is named before a run is opened."""
    write_tables(settings, NAME)
    with pytest.raises(TrainingError, match="no candidate `forest`; expected one of xgboost"):
        begin(settings, NAME, ["forest"], None, None, SEED)
    with pytest.raises(TrainingError, match="expected a version up to"):
        begin(settings, NAME, [], 10_000, None, SEED)


def test_recipe_without_tables(platform: Settings, tmp_path: Path) -> None:
    """Training before preprocessing says which flow to run."""
    with pytest.raises(TrainingError, match="run the flow `preprocess` first"):
        begin(farm(platform, tmp_path, "tiny-empty"), "tiny-empty", [], None, None, SEED)


def test_profiles_that_cannot_share_a_graph(platform: Settings, tmp_path: Path) -> None:
    """Two profiles whose steps are reduced by different rules are refused before a run is opened."""
    settings = farm(platform, tmp_path, "tiny-mixed")
    (tmp_path / "expectations").unlink()
    (tmp_path / "expectations" / "profiles").mkdir(parents=True)
    text = (platform.root / "expectations" / "profiles" / "senvion-mm82.yaml").read_text()
    for name, content in (
        ("senvion-mm82", text),
        ("other", text.replace("name: senvion-mm82", "name: other").replace("rule: mean", "rule: max", 1)),
    ):
        (tmp_path / "expectations" / "profiles" / f"{name}.yaml").write_text(content)
    recipe = tmp_path / "recipes" / "tiny-mixed.yaml"
    recipe.write_text(recipe.read_text().replace("[senvion-mm82]", "[senvion-mm82, other]"))
    with pytest.raises(
        TrainingError, match="profiles `senvion-mm82` and `other` reduce a grid step by different rules"
    ):
        begin(settings, "tiny-mixed", [], None, None, SEED)


def test_native_model_with_a_foreign_type() -> None:
    """A skops file with a type that is not on the allow-list is not loaded."""
    import skops.io  # type: ignore[import-untyped]

    with pytest.raises(TrainingError, match=r"types that are not trusted: .*Path"):
        scikit.restore(skops.io.dumps({"a": Path("x")}), Problem("value"))


def test_a_quarter_of_the_sample_has_gaps() -> None:
    """A sample is spread evenly, and rows with gaps have their share of it."""
    features = np.zeros((1000, 2), np.float32)
    features[:10, 1] = np.nan
    features[500:510, 0] = np.nan
    rows = spread_out(features, 40)
    assert len(rows) == len(set(rows.tolist())) == 40
    assert np.isnan(features[rows]).any(axis=1).sum() >= 10
    assert rows.max() > 900


def test_same_content_is_trained_once(settings: FarmSettings) -> None:
    """The same tables, recipe and seed give the runs that are there; a training that was killed goes on in its run."""
    versions = write_tables(settings, NAME)
    begun = begin(settings, NAME, ["ridge", "xgboost"], *versions, SEED + 1)
    killed_after = train_candidate(settings, begun, "ridge", SEED + 1)
    again = begin(settings, NAME, ["ridge", "xgboost"], *versions, SEED + 1)
    assert again == begun
    results = [train_candidate(settings, again, name, SEED + 1) for name in again.algorithms]
    assert results[0] == killed_after
    first = finish(settings, again, results)
    parent = begin(settings, NAME, ["ridge", "xgboost"], *versions, SEED + 1)
    second = finish(settings, parent, [train_candidate(settings, parent, name, SEED + 1) for name in again.algorithms])
    assert second == first
    other = begin(settings, NAME, ["ridge", "xgboost"], *versions, SEED + 2)
    assert other.run_id != first.run_id


def test_logged_by_a_process_that_did_not_fit(settings: FarmSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process that was killed had fitted is fitted again, to the same graph, and logged to the same run."""
    training = begin(settings, NAME, ["ridge"], *write_tables(settings, NAME), SEED + 3)
    run_id = fit_run(settings, training, "ridge", SEED + 3)
    first = training_stage._FITTED.pop(run_id)
    assert registry.client(settings).get_run(run_id).info.status == "RUNNING"
    fed = spy(monkeypatch)
    result = log_run(settings, training, "ridge", SEED + 3, run_id)
    assert fed
    assert result.run_id == run_id
    assert registry.run_tags(settings, run_id)[GRAPH_DIGEST] == digest(first.graph.SerializeToString())
    assert run_id not in training_stage._FITTED
    fed.clear()
    assert log_run(settings, training, "ridge", SEED + 3, run_id) == result
    assert not fed


def test_figures_of_the_logged_model(settings: FarmSettings, trained: tuple[Training, list[CandidateResult]]) -> None:
    """The graph's own page in MLflow shows the figures of its run."""
    mlflow = registry.client(settings)
    run = mlflow.get_run(trained[1][0].run_id)
    model = mlflow.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {metric.key: metric.value for metric in model.metrics} == run.data.metrics
    assert model.params["features"] == run.data.params["features"]


def test_a_training_killed_between_fit_and_log_goes_on_in_its_runs(settings: FarmSettings) -> None:
    """Killed with -9 once it has fitted, a training leaves two runs open; the next turn finishes both, adding none."""
    seed, versions = SEED + 4, write_tables(settings, NAME)
    open_runs = _killed_after_fit(settings, versions, seed)
    training = begin(settings, NAME, ["ridge"], *versions, seed)
    result = train_candidate(settings, training, "ridge", seed)
    finish(settings, training, [result])
    assert {training.run_id, result.run_id} == open_runs
    assert not _running(settings) & open_runs


def test_runs_of_a_killed_training_that_nobody_goes_on_with_are_closed(settings: FarmSettings) -> None:
    """Upkeep marks them as killed once they are old, and leaves alone what began since and what others log there."""
    began = datetime.now(UTC)
    open_runs = _killed_after_fit(settings, write_tables(settings, NAME), SEED + 5)
    mlflow = registry.client(settings)
    foreign = mlflow.create_run(registry.experiment(settings, NAME)).info.run_id
    assert not open_runs & set(close_abandoned(settings, NAME, began))
    assert open_runs <= set(close_abandoned(settings, NAME, datetime.now(UTC) + timedelta(seconds=1)))
    assert {mlflow.get_run(run_id).info.status for run_id in open_runs} == {"KILLED"}
    assert mlflow.get_run(foreign).info.status == "RUNNING"


def test_what_could_not_be_logged_is_not_kept(settings: FarmSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate whose logging failed leaves the process; tried again, it is fitted again and logged to its run."""
    training = begin(settings, NAME, ["ridge"], *write_tables(settings, NAME), SEED + 6)
    run_id = fit_run(settings, training, "ridge", SEED + 6)
    with monkeypatch.context() as broken:
        broken.setattr(training_stage, "log_fitted", _refuse)
        with pytest.raises(ConnectionError):
            log_run(settings, training, "ridge", SEED + 6, run_id)
    assert run_id not in training_stage._FITTED
    assert registry.client(settings).get_run(run_id).info.status == "FAILED"
    assert log_run(settings, training, "ridge", SEED + 6, run_id).run_id == run_id
    assert registry.client(settings).get_run(run_id).info.status == "FINISHED"


def _refuse(*_: object) -> None:
    raise ConnectionError("MLflow is away")


def _running(settings: FarmSettings) -> set[str]:
    """The recipe's runs that MLflow takes for running."""
    experiment_id = registry.experiment(settings, NAME)
    found = registry.client(settings).search_runs([experiment_id], "attributes.status = 'RUNNING'")
    return {run.info.run_id for run in found}


def _killed_after_fit(settings: FarmSettings, versions: tuple[int, int], seed: int) -> set[str]:
    """Begin a training and fit a candidate in a process that is killed before it logs; return the runs left open."""
    before = _running(settings)
    process = multiprocessing.get_context("spawn").Process(target=_fit_and_die, args=(settings, versions, seed))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    left = _running(settings) - before
    assert len(left) == 2
    return left


def _fit_and_die(settings: FarmSettings, versions: tuple[int, int], seed: int) -> None:
    fit_run(settings, begin(settings, NAME, ["ridge"], *versions, seed), "ridge", seed)
    os.kill(os.getpid(), signal.SIGKILL)
