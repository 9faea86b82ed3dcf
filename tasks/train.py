"""Train: features by the recipe's one graph, candidates fitted on the training windows alone, all of it in MLflow.

    pin table versions → open the parent run → fit each candidate (a child run each) → close the parent with the best

A candidate's task takes references and recomputes the features (seconds), so that it can run or be repeated anywhere.
What was trained before from the same content is not trained again: a run that was killed goes on where it was.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from prefect import task

from expectations.profiles import load_profile
from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import PREDICTION, WINDOW, feature_graph, merge
from fieldloop.domain.metrics import better, regression
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe import Candidate, Metric, Promotion, Recipe, load_recipe
from fieldloop.domain.windows import WindowSpec
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks import candidates, plots
from tasks.examples import Examples, Versions, apply, read, spread_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUNTIME_PACKAGES: Final = ("numpy", "onnx", "onnxruntime")
LEARNING_PACKAGES: Final = (*RUNTIME_PACKAGES, "onnxmltools", "scikit-learn", "skl2onnx", "xgboost-cpu")
NATIVE: Final = "native"  # artifact folder of the model in its own library's format
BEST_RUN: Final = "fieldloop.best_run"  # tag of a parent run
ALGORITHM: Final = "fieldloop.algorithm"
CONTENT: Final = "fieldloop.content"  # tag: digest of all that a run follows from
GRID_VERSION: Final = "fieldloop.grid_version"
WINDOWS_VERSION: Final = "fieldloop.windows_version"
LINEAGE: Final = "lineage."  # prefix of tags that say where a model comes from


@dataclass(frozen=True)
class Training:
    """A training that has begun: what all its candidates share.

    Attributes:
        recipe: name of the recipe.
        versions: table versions that it reads.
        algorithms: candidates to fit.
        experiment_id: MLflow experiment.
        run_id: parent run.
    """

    recipe: str
    versions: Versions
    algorithms: tuple[str, ...]
    experiment_id: str
    run_id: str


@dataclass(frozen=True)
class CandidateResult:
    """One fitted candidate.

    Attributes:
        algorithm: its name in the recipe.
        run_id: MLflow run, which carries the graph.
        metrics: on the held-out windows, by the merged graph; mae and rmse in the target's unit.
        rows: windows by use: train, test, embargo, no_target.
        fit_s: seconds that fitting took.
    """

    algorithm: str
    run_id: str
    metrics: dict[Metric, float]
    rows: dict[str, int]
    fit_s: float


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes:
        recipe: name of the recipe.
        versions: table versions that it read.
        run_id: parent run.
        run_url: its page.
        best: the candidate that the recipe's metric prefers.
        candidates: all of them, best first.
    """

    recipe: str
    versions: Versions
    run_id: str
    run_url: str
    best: CandidateResult
    candidates: tuple[CandidateResult, ...]


@dataclass(frozen=True)
class _Fitted:
    """A candidate with all that its run is going to carry."""

    recipe: Recipe
    candidate: Candidate
    found: Examples
    names: tuple[str, ...]
    model: candidates.Model
    graph: onnx.ModelProto
    test: NDArray[np.int64]
    predicted: NDArray[np.float32]
    canary: NDArray[np.int64]
    fit_s: float


@task(name="begin training", retries=2, retry_delay_seconds=5, timeout_seconds=300, tags=["mlflow", "lake"])
def begin_training(
    recipe: str, algorithms: Sequence[str], grid_version: int | None, windows_version: int | None, seed: int
) -> Training:
    """Pin the table versions and open the parent run."""
    return begin(Settings(), recipe, algorithms, grid_version, windows_version, seed)


@task(
    name="fit candidate",
    task_run_name="fit {algorithm}",
    retries=1,
    retry_delay_seconds=10,
    timeout_seconds=3600,
    tags=["mlflow", "lake", "compute"],
)
def fit_candidate(training: Training, algorithm: str, seed: int) -> CandidateResult:
    """Fit one candidate and log it as a run below the parent."""
    return train_candidate(Settings(), training, algorithm, seed)


@task(name="finish training", retries=2, retry_delay_seconds=5, timeout_seconds=300, tags=["mlflow"])
def finish_training(training: Training, results: Sequence[CandidateResult]) -> TrainResult:
    """Close the parent run with the best candidate's figures."""
    return finish(Settings(), training, results)


@task(name="fail training", timeout_seconds=60, tags=["mlflow"])
def fail_training(training: Training) -> None:
    """Mark the parent run as failed."""
    registry.client(Settings()).set_terminated(training.run_id, "FAILED")


def begin(
    settings: Settings,
    recipe_name: str,
    algorithms: Sequence[str],
    grid_version: int | None,
    windows_version: int | None,
    seed: int,
) -> Training:
    """Pin candidates (all where none is named) and table versions (the newest), and open or find the parent run.

    Raises:
        DocumentError: there is no such recipe or profile, or they do not fit.
        TrainingError: there are no tables to train from, or the recipe has no such candidate.
    """
    recipe = load_recipe(settings.root, recipe_name)
    _profiles(settings, recipe)
    chosen = [_candidate(recipe, name) for name in dict.fromkeys(algorithms)] or recipe.candidates
    lake = Lake(settings)
    versions = Versions(
        _pinned(lake, f"grid/{recipe.name}", grid_version), _pinned(lake, f"windows/{recipe.name}", windows_version)
    )
    names = tuple(candidate.algorithm for candidate in chosen)
    content = _digest([_content(recipe, versions, name, seed) for name in names])
    mlflow = registry.client(settings)
    experiment_id = registry.experiment(settings, recipe.name)
    begun = _newest(mlflow, experiment_id, content, ("FINISHED", "RUNNING"))
    if begun is not None:
        return Training(recipe.name, versions, names, experiment_id, begun.info.run_id)
    tags = {**_lineage(lake, recipe, versions), CONTENT: content, "mlflow.note.content": recipe.description}
    run = mlflow.create_run(experiment_id, tags=tags, run_name=f"{recipe.name} on windows {versions.windows}")
    _log_values(mlflow, run.info.run_id, {}, {"seed": seed, **_recipe_params(recipe)})
    _log_dataset(mlflow, lake, recipe, versions, run.info.run_id)
    return Training(recipe.name, versions, names, experiment_id, run.info.run_id)


def train_candidate(settings: Settings, training: Training, algorithm: str, seed: int) -> CandidateResult:
    """Fit one candidate, judge its merged graph on the held-out windows, and log both; once for the same content.

    Raises:
        TrainingError: the tables cannot be trained from, or the recipe has no such candidate.
    """
    lake = Lake(settings)
    recipe = load_recipe(settings.root, training.recipe)
    candidate = _candidate(recipe, algorithm)
    mlflow = registry.client(settings)
    content = _content(recipe, training.versions, algorithm, seed)
    done = _newest(mlflow, training.experiment_id, content, ("FINISHED",))
    if done is not None:
        return _result(done)
    tags = {
        **_lineage(lake, recipe, training.versions),
        "mlflow.parentRunId": training.run_id,
        ALGORITHM: algorithm,
        CONTENT: content,
    }
    run_id = mlflow.create_run(training.experiment_id, tags=tags, run_name=algorithm).info.run_id
    try:
        fitted = fit(recipe, candidate, read(lake, recipe, training.versions), seed)
        result = _log(settings, fitted, lake, training.versions, run_id, seed)
    except BaseException:
        mlflow.set_terminated(run_id, "FAILED")
        raise
    mlflow.set_terminated(run_id)
    return result


def fit(recipe: Recipe, candidate: Candidate, found: Examples, seed: int) -> _Fitted:
    """Fit on the training windows alone, merge the graph and run it on the held-out windows.

    Raises:
        TrainingError: one side of the split is empty, or the candidate cannot be fitted.
    """
    feature_half, names = feature_graph(recipe)
    train, test = found.chosen("train"), found.chosen("test")
    if not len(train) or not len(test):
        raise TrainingError(f"{recipe.name}: expected windows to train and to test on, got {found.counts()}")
    features = apply(feature_half.SerializeToString(), found, train)
    began = time.monotonic()
    model = candidates.fit(candidate, features, found.target[train], seed)
    fit_s = time.monotonic() - began
    graph = merge(feature_half, candidates.convert(model, len(names)))
    predicted = apply(graph.SerializeToString(), found, test)[:, 0]
    held_out = apply(feature_half.SerializeToString(), found, test)
    canary = test[spread_out(held_out, recipe.release.canary_rows)]
    return _Fitted(recipe, candidate, found, names, model, graph, test, predicted, canary, fit_s)


def finish(settings: Settings, training: Training, results: Sequence[CandidateResult]) -> TrainResult:
    """Close the parent run with the figures of the candidate that the recipe's metric prefers.

    Raises:
        TrainingError: there is no candidate.
    """
    if not results:
        raise TrainingError(f"{training.recipe}: expected at least one fitted candidate, got none")
    recipe = load_recipe(settings.root, training.recipe)
    ranked = _ranked(results, recipe.promotion)
    best = ranked[0]
    mlflow = registry.client(settings)
    if mlflow.get_run(training.run_id).info.status != "FINISHED":
        figures = {f"{result.algorithm}.{name}": value for result in ranked for name, value in result.metrics.items()}
        _log_values(mlflow, training.run_id, {**best.metrics, **figures}, {"best": best.algorithm})
        mlflow.set_tag(training.run_id, BEST_RUN, best.run_id)
        mlflow.set_terminated(training.run_id)
    url = registry.run_url(settings, training.experiment_id, training.run_id)
    return TrainResult(training.recipe, training.versions, training.run_id, url, best, tuple(ranked))


def describe(result: TrainResult) -> str:
    """Return the training as Markdown for a person."""
    rows = [
        f"| {'**' if entry is result.best else ''}{entry.algorithm}{'**' if entry is result.best else ''} "
        f"| {entry.metrics['r2']:.4f} | {entry.metrics['mae']:.2f} | {entry.metrics['rmse']:.2f} | {entry.fit_s:.1f} |"
        for entry in result.candidates
    ]
    used = result.best.rows
    return "\n".join(
        (
            f"[MLflow run]({result.run_url}) of recipe `{result.recipe}`, from `grid/{result.recipe}` version "
            f"{result.versions.grid} and `windows/{result.recipe}` version {result.versions.windows}.",
            "",
            "| candidate | R² | MAE | RMSE | fit, s |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Judged on {used['test']:,} held-out windows after training on {used['train']:,}; {used['embargo']:,} in "
            f"the embargo or later and {used['no_target']:,} without a target served neither.",
        )
    )


def graph_bytes(graph: onnx.ModelProto) -> bytes:
    """Return a graph's bytes, the same for the same graph."""
    return bytes(graph.SerializeToString(deterministic=True))


def runtime() -> dict[str, str]:
    """Return the versions of the packages that predictions depend on."""
    return {package: package_version(package) for package in RUNTIME_PACKAGES}


def _pinned(lake: Lake, table: str, wanted: int | None) -> int:
    newest = lake.version(table)
    if newest is None:
        raise TrainingError(f"table {table} does not exist: run the flow `preprocess` first")
    if wanted is not None and wanted > newest:
        raise TrainingError(f"table {table}: expected a version up to {newest}, got {wanted}")
    return newest if wanted is None else wanted


def _candidate(recipe: Recipe, algorithm: str) -> Candidate:
    for candidate in recipe.candidates:
        if candidate.algorithm == algorithm:
            return candidate
    known = ", ".join(candidate.algorithm for candidate in recipe.candidates)
    raise TrainingError(f"recipe {recipe.name} has no candidate `{algorithm}`; expected one of {known}")


def _ranked(results: Sequence[CandidateResult], rule: Promotion) -> list[CandidateResult]:
    """Candidates by the rule's metric, best first; a tie keeps the recipe's order."""
    plain = Promotion(metric=rule.metric)
    ranked: list[CandidateResult] = []
    for result in results:
        value = result.metrics[rule.metric]
        at = next(
            (i for i, other in enumerate(ranked) if better(value, other.metrics[rule.metric], plain)), len(ranked)
        )
        ranked.insert(at, result)
    return ranked


def _content(recipe: Recipe, versions: Versions, algorithm: str, seed: int) -> str:
    """Return a digest of all that a candidate follows from: recipe, tables, seed, feature graph, libraries."""
    features = hashlib.sha256(feature_graph(recipe)[0].SerializeToString(deterministic=True)).hexdigest()
    packages = {package: package_version(package) for package in LEARNING_PACKAGES}
    return _digest([recipe.digest, versions.grid, versions.windows, algorithm, seed, features, packages])


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _newest(mlflow: "MlflowClient", experiment_id: str, content: str, states: tuple[str, ...]) -> "Run | None":
    """Return the newest run made from this content that is in one of these states."""
    found = mlflow.search_runs(
        [experiment_id], f"tags.`{CONTENT}` = '{content}'", order_by=["attributes.start_time DESC"], max_results=20
    )
    return next((run for run in found if run.info.status in states), None)


def _result(run: "Run") -> CandidateResult:
    """Read back what `_log` wrote."""
    figures = run.data.metrics
    rows = {name.removeprefix("rows."): int(count) for name, count in figures.items() if name.startswith("rows.")}
    metrics: dict[Metric, float] = {name: figures[name] for name in get_args(Metric)}
    return CandidateResult(run.data.tags[ALGORITHM], run.info.run_id, metrics, rows, figures["fit_s"])


def _lineage(lake: Lake, recipe: Recipe, versions: Versions) -> dict[str, str]:
    """Tags that say where a run comes from."""
    grid, windows = f"grid/{recipe.name}", f"windows/{recipe.name}"
    return {
        "fieldloop.recipe": recipe.name,
        "fieldloop.recipe_digest": recipe.digest,
        GRID_VERSION: str(versions.grid),
        WINDOWS_VERSION: str(versions.windows),
        f"{LINEAGE}recipe": recipe.digest,
        f"{LINEAGE}grid": f"{lake.uri(grid)}@{versions.grid}",
        f"{LINEAGE}windows": f"{lake.uri(windows)}@{versions.windows}",
    }


def _recipe_params(recipe: Recipe) -> dict[str, Any]:
    """The recipe's figures that a person compares runs by."""
    return {
        "inputs": ",".join(recipe.inputs),
        "target": recipe.target.metric,
        "features": ",".join(recipe.features),
        "step_s": recipe.grid.step_s,
        "window_length": recipe.window.length,
        "train_until": recipe.split.train_until.isoformat(),
        "test_until": recipe.split.test_until.isoformat(),
    }


def _log(
    settings: Settings, fitted: _Fitted, lake: Lake, versions: Versions, run_id: str, seed: int
) -> CandidateResult:
    """Log a fitted candidate to its run."""
    mlflow = registry.client(settings)
    truth = fitted.found.target[fitted.test]
    metrics = regression(truth, fitted.predicted)
    named: dict[str, float] = {str(name): value for name, value in metrics.items()}
    rows = fitted.found.counts()
    params: dict[str, Any] = {"seed": seed, **_recipe_params(fitted.recipe), **fitted.candidate.model_dump()}
    counted = {f"rows.{use}": float(count) for use, count in rows.items()}
    figures = {**named, **counted, **_per_device(fitted), "fit_s": fitted.fit_s}
    _log_values(mlflow, run_id, figures, params)
    _log_dataset(mlflow, lake, fitted.recipe, versions, run_id)
    profiles = _profiles(settings, fitted.recipe)
    unit = fitted.recipe.target_channel(profiles[fitted.recipe.profiles[0]]).unit
    _log_files(mlflow, run_id, _files(fitted, profiles), _pictures(fitted, unit))
    _log_graph(settings, fitted, run_id)
    return CandidateResult(fitted.candidate.algorithm, run_id, metrics, rows, fitted.fit_s)


def _per_device(fitted: _Fitted) -> dict[str, float]:
    """Mean absolute error of each device."""
    error = np.abs(fitted.predicted - fitted.found.target[fitted.test])
    device = fitted.found.device[fitted.test]
    return {
        f"mae.{name}": float(np.mean(error[device == code]))
        for code, name in enumerate(fitted.found.devices)
        if (device == code).any()
    }


def _files(fitted: _Fitted, profiles: Mapping[str, Profile]) -> dict[str, bytes]:
    """What a release is going to need, and the model in its own library's format."""
    recipe = fitted.recipe
    native_name, native = candidates.dump(fitted.model)
    return {
        "release/window.json": msgspec.json.encode(_window_spec(recipe, profiles)),
        "release/profiles.json": msgspec.json.encode(profiles),
        "release/canary.json": _canary(fitted),
        "release/features.json": msgspec.json.encode(fitted.names),
        "release/target.json": _target(recipe, profiles[recipe.profiles[0]]),
        "recipe.json": recipe.model_dump_json(indent=2).encode(),
        f"{NATIVE}/{native_name}": native,
    }


def _profiles(settings: Settings, recipe: Recipe) -> dict[str, Profile]:
    """The recipe's profiles, each with all that the recipe reads and predicts."""
    profiles = {name: load_profile(settings.root, name) for name in recipe.profiles}
    _window_spec(recipe, profiles)
    return profiles


def _window_spec(recipe: Recipe, profiles: Mapping[str, Profile]) -> WindowSpec:
    """What a window is, the same for every profile, since one graph serves them all."""
    specs = {name: recipe.window_spec(profile) for name, profile in profiles.items()}
    first = specs[recipe.profiles[0]]
    for name, spec in specs.items():
        if spec != first:
            raise TrainingError(
                f"recipe {recipe.name}: profiles `{recipe.profiles[0]}` and `{name}` reduce a grid step by different "
                f"rules: {first.rules} and {spec.rules} for {recipe.inputs}; give them the same, or a recipe each"
            )
    return first


def _canary(fitted: _Fitted) -> bytes:
    """Held-out windows as JSON, null for NaN."""
    windows = np.concatenate(list(fitted.found.windows(fitted.canary)))
    return msgspec.json.encode({"inputs": windows.tolist()})


def _target(recipe: Recipe, profile: Profile) -> bytes:
    """What is predicted, for the manifest."""
    unit = recipe.target_channel(profile).unit
    return msgspec.json.encode({"metric": recipe.target.metric, "unit": unit, "tolerance": recipe.release.tolerance})


def _pictures(fitted: _Fitted, unit: str) -> dict[str, "Figure"]:
    truth = fitted.found.target[fitted.test]
    quantity = f"{fitted.recipe.target.metric}, {unit}"
    return {
        "plots/truth_and_prediction.png": plots.truth_and_prediction(truth, fitted.predicted, quantity),
        "plots/residuals.png": plots.residuals(fitted.found.end_us[fitted.test], fitted.predicted - truth, quantity),
        "plots/importance.png": plots.importance(candidates.importances(fitted.model, fitted.names)),
    }


def _log_files(
    mlflow: "MlflowClient", run_id: str, files: Mapping[str, bytes], pictures: Mapping[str, "Figure"]
) -> None:
    """Upload files and pictures, by path."""
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as name:
        folder = Path(name)
        for path in (*files, *pictures):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        for path, figure in pictures.items():
            figure.savefig(folder / path)
        mlflow.log_artifacts(run_id, name)


def _log_values(mlflow: "MlflowClient", run_id: str, metrics: Mapping[Any, float], params: Mapping[str, Any]) -> None:
    """Log metrics and parameters in one call."""
    from mlflow.entities import Metric as MlflowMetric
    from mlflow.entities import Param

    now_ms = time.time_ns() // 1_000_000
    mlflow.log_batch(
        run_id,
        metrics=[MlflowMetric(str(name), value, now_ms, 0) for name, value in metrics.items()],
        params=[Param(name, str(value)) for name, value in params.items()],
    )


def _log_dataset(mlflow: "MlflowClient", lake: Lake, recipe: Recipe, versions: Versions, run_id: str) -> None:
    """Say in MLflow's terms which tables, at which versions, the run reads."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tables = {f"grid/{recipe.name}": versions.grid, f"windows/{recipe.name}": versions.windows}
    inputs = [
        DatasetInput(
            Dataset(table, f"version {version}", "delta_table", _delta_source(lake.uri(table), version)),
            [InputTag("mlflow.data.context", "training and test")],
        )
        for table, version in tables.items()
    ]
    mlflow.log_inputs(run_id, inputs)


def _delta_source(uri: str, version: int) -> str:
    """A table version as MLflow's own Delta source writes it."""
    return json.dumps({"path": uri, "delta_table_version": version})


def _log_graph(settings: Settings, fitted: _Fitted, run_id: str) -> None:
    """Log the merged graph as MLflow model `graph`, with signature and input example."""
    import mlflow
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    length, channels = fitted.recipe.window.length, len(fitted.recipe.channels)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, channels, length), WINDOW)]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, 1), PREDICTION)]),
    )
    mlflow.set_tracking_uri(settings.mlflow_endpoint)
    with mlflow.start_run(run_id=run_id):
        mlflow.onnx.log_model(
            fitted.graph,
            name=registry.GRAPH,
            signature=signature,
            input_example={WINDOW: next(fitted.found.windows(fitted.canary[-1:]))},
            pip_requirements=[f"{package}=={version}" for package, version in runtime().items()],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
