"""What the MLflow run of a candidate carries: figures, lineage, data sets, pictures, all that a release needs."""

import io
import json
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import polars as pl

from expectations.profiles import load_profile
from fieldloop.domain.alerts import Limits
from fieldloop.domain.drift import Distributions
from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import PREDICTION, WINDOW
from fieldloop.domain.parts import PARTS
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe import Metric, Recipe
from fieldloop.domain.release import Budget
from fieldloop.domain.sketch import Sketch
from fieldloop.domain.windows import WindowSpec
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks import candidates
from tasks.evaluation import Evaluation, evaluate
from tasks.examples import Versions
from tasks.fitting import Fitted
from tasks.notes import notes
from tasks.origin import ORIGIN, RECIPE, origin_of
from tasks.pictures import pictures
from tasks.tags import (
    AS_OF,
    BLOCK,
    CODE,
    GRAPH_DIGEST,
    GRID_VERSION,
    LATE,
    LINEAGE,
    NOTES,
    RECIPE_DIGEST,
    RECIPE_NAME,
    WINDOWS_VERSION,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

RUNTIME_PACKAGES: Final = ("numpy", "onnx", "onnxruntime")
_UPLOADS: Final = 4  # files on their way to MLflow at once
NATIVE: Final = "native"  # artifact folder of the model in its own library's format
PREDICTIONS: Final = "evaluation/predictions.parquet"  # a row a window that chose or judged
REFERENCE: Final = "release/reference.json"  # what the model was learnt from and predicts, for drift to be seen by
VALIDATION: Final = "validation."  # prefix of the metrics that chose


def lineage(lake: Lake, recipe: Recipe, versions: Versions) -> dict[str, str]:
    """Tags that say where a run comes from."""
    grid, windows = f"grid/{recipe.name}", f"windows/{recipe.name}"
    return {
        RECIPE_NAME: recipe.name,
        RECIPE_DIGEST: recipe.digest,
        GRID_VERSION: str(versions.grid),
        WINDOWS_VERSION: str(versions.windows),
        f"{LINEAGE}recipe": recipe.digest,
        f"{LINEAGE}grid": f"{lake.uri(grid)}@{versions.grid}",
        f"{LINEAGE}windows": f"{lake.uri(windows)}@{versions.windows}",
        **_past(lake, windows, versions.windows),
    }


def _past(lake: Lake, table: str, version: int) -> dict[str, str]:
    """Tags that say which readings and labels the tables were made of, and as of which moment, if any."""
    made = lake.commits(table, 1, version)[0].metadata
    found = {f"{LINEAGE}readings": f"{lake.uri('readings')}@{made['readings']}"} if "readings" in made else {}
    if "labels" in made:
        found[f"{LINEAGE}labels"] = f"{made['labels']} sha256:{made['labels_sha256']}"
    past = {AS_OF: "as_of", LATE: "late"}
    return found | {tag: made[name] for tag, name in past.items() if name in made}


def recipe_params(recipe: Recipe) -> dict[str, Any]:
    """The recipe's figures that a person compares runs by."""
    split = recipe.split.model_dump(mode="json", exclude_none=True)
    return {
        "inputs": ",".join(recipe.inputs),
        "target": recipe.target_name,
        "target_kind": recipe.target.kind,
        "horizon": recipe.lookahead,
        "features": ",".join(recipe.features),
        "step_s": recipe.grid.step_s,
        "window_length": recipe.window.length,
        "stride": recipe.window.stride,
        **{f"split.{name}": value for name, value in split.items()},
    }


def log_fitted(settings: Settings, fitted: Fitted, lake: Lake, versions: Versions, run_id: str, seed: int) -> None:
    """Log a fitted candidate to its run; the figures last, since they are the graph's as well as the run's."""
    mlflow = registry.client(settings)
    params: dict[str, Any] = {"seed": seed, **recipe_params(fitted.recipe), **fitted.candidate.settings}
    log_values(mlflow, run_id, {}, params)  # before the graph, whose page shows those that are there
    log_dataset(mlflow, lake, fitted.recipe, versions, run_id)
    with ThreadPoolExecutor(1) as beside:  # it mostly waits for MLflow
        logged = beside.submit(_log_graph, settings, fitted, run_id)
        origin, evaluation = origin_of(fitted, versions, seed, settings.root), evaluate(fitted)
        profiles = load_profiles(settings, fitted.recipe)
        unit = fitted.recipe.target_unit(profiles[fitted.recipe.profiles[0]])
        files = {
            **_files(fitted, profiles),
            **{f"evaluation/{name}": table for name, table in evaluation.tables().items()},
            ORIGIN: msgspec.json.format(msgspec.json.encode(origin), indent=2),
        }
        _log_files(mlflow, run_id, files, pictures(fitted, unit))
        tags = {
            GRAPH_DIGEST: origin.graph,
            CODE: origin.code,
            NOTES: "\n".join(notes(fitted)),
            BLOCK: evaluation.block,
        }
        model_id = logged.result()
    log_values(mlflow, run_id, _figures(fitted, evaluation), {}, tags, model_id)


def _figures(fitted: Fitted, evaluation: Evaluation) -> dict[str, float]:
    """Metrics on the held-out windows under their own names, and beside them what chose, how many, and how long."""
    own, drawn = fitted.random_split
    return {
        **evaluation.figures(),
        **{f"{VALIDATION}{name}": value for name, value in fitted.validation.items()},
        **{f"rows.{use}": float(count) for use, count in fitted.found.counts().items()},
        "random_split.own": own,
        "random_split.random": drawn,
        "fit_s": fitted.fit_s,
    }


def intervals_of(recipe: Recipe, figures: Mapping[str, float]) -> dict[Metric, tuple[float, float]]:
    """Read back the intervals that a candidate's run has among its metrics."""
    return {
        name: (figures[f"{name}.low"], figures[f"{name}.high"]) for name in recipe.metrics() if f"{name}.low" in figures
    }


def _predictions(fitted: Fitted) -> bytes:
    """What was predicted for each window that chose or judged, as Parquet.

    Columns: part, device, end_time, target, prediction, and for three and more classes the probability of each.
    """
    found, buffer = fitted.found, io.BytesIO()
    frames = []
    probabilities = [f"p.{name}" for name in fitted.recipe.classes][: fitted.recipe.width - 1]
    judging = ((fitted.materials.validation, fitted.validation_predicted), (fitted.test, fitted.predicted))
    for part, (rows, predicted) in zip(PARTS[1:], judging, strict=True):
        times = pl.Series(found.end_us[rows]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        columns = {
            "device": np.array(found.devices)[found.device[rows]],
            "end_time": times,
            "target": found.target[rows],
            "prediction": np.ascontiguousarray(predicted[:, 0]),
            **{name: predicted[:, 1 + code] for code, name in enumerate(probabilities)},
        }
        frames.append(pl.DataFrame(columns).select(pl.lit(part).alias("part"), pl.all()))
    pl.concat(frames).write_parquet(buffer)
    return buffer.getvalue()


def _files(fitted: Fitted, profiles: Mapping[str, Profile]) -> dict[str, bytes]:
    """What a release is going to need, and the model in its own library's format."""
    recipe = fitted.recipe
    return {
        "release/window.json": msgspec.json.encode(window_spec(recipe, profiles)),
        "release/profiles.json": msgspec.json.encode(profiles),
        "release/canary.json": _canary(fitted),
        REFERENCE: msgspec.json.encode(_reference(fitted)),
        "release/features.json": msgspec.json.encode(fitted.materials.names),
        "release/target.json": _target(recipe, profiles[recipe.profiles[0]]),
        RECIPE: recipe.model_dump_json(indent=2).encode(),
        PREDICTIONS: _predictions(fitted),
        **{f"{NATIVE}/{name}": data for name, data in candidates.dump(fitted.model).items()},
    }


def load_profiles(settings: Settings, recipe: Recipe) -> dict[str, Profile]:
    """The recipe's profiles, each with all that the recipe reads and predicts."""
    profiles = {name: load_profile(settings.root, name) for name in recipe.profiles}
    window_spec(recipe, profiles)
    return profiles


def window_spec(recipe: Recipe, profiles: Mapping[str, Profile]) -> WindowSpec:
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


def _canary(fitted: Fitted) -> bytes:
    """Held-out windows as JSON, null for NaN."""
    windows = fitted.found.windows(fitted.materials.canary)
    return msgspec.json.encode({"inputs": windows.tolist()})


def _reference(fitted: Fitted) -> Distributions:
    """The inputs that the model was fitted to, and the predictions on the held-out windows.

    Predictions on what it was fitted to would lie closer to the truth than any that are still to come.
    """
    learnt = np.sort(np.concatenate([fitted.materials.train, fitted.materials.validation]))
    newest = fitted.found.newest(learnt)
    inputs = {metric: Sketch.of(values) for metric, values in zip(fitted.recipe.inputs, newest, strict=True)}
    return Distributions(inputs, Sketch.of(fitted.predicted[:, 0]))


def _target(recipe: Recipe, profile: Profile) -> bytes:
    """What is predicted, what it may take of a gateway and what is an alert, for the manifest."""
    wanted = recipe.release
    memory = None if wanted.memory_mb is None else round(wanted.memory_mb * 1e6)
    latency = None if wanted.latency_ms is None else wanted.latency_ms / 1e3
    hold_us = wanted.alert_hold * recipe.step_us
    limited = wanted.alert_below is not None or wanted.alert_above is not None
    return msgspec.json.encode(
        {
            "metric": recipe.target_name,
            "unit": recipe.target_unit(profile),
            "tolerance": wanted.tolerance,
            "budget": Budget(memory, latency),
            "alerts": Limits(wanted.alert_below, wanted.alert_above, hold_us) if limited else None,
        }
    )


def _log_files(mlflow: "MlflowClient", run_id: str, files: Mapping[str, bytes], drawn: Mapping[str, "Figure"]) -> None:
    """Upload files and pictures, by path; the files while the pictures are drawn."""
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as name, ThreadPoolExecutor(_UPLOADS) as pool:
        folder = Path(name)

        def upload(path: str) -> Future[None]:
            return pool.submit(mlflow.log_artifact, run_id, folder / path, _folder_of(path))

        for path in (*files, *drawn):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        uploads = [upload(path) for path in files]
        for path, figure in drawn.items():
            figure.savefig(folder / path)
            uploads.append(upload(path))
        for each in uploads:
            each.result()


def _folder_of(path: str) -> str | None:
    """The artifact folder of a file; None at the top."""
    return path.rpartition("/")[0] or None


def log_values(
    mlflow: "MlflowClient",
    run_id: str,
    metrics: Mapping[Any, float],
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    model_id: str | None = None,
) -> None:
    """Log metrics, which are a logged model's too where one is named, parameters and tags in one call."""
    from mlflow.entities import Metric as MlflowMetric
    from mlflow.entities import Param, RunTag

    now_ms = time.time_ns() // 1_000_000
    mlflow.log_batch(
        run_id,
        metrics=[MlflowMetric(str(name), value, now_ms, 0, model_id) for name, value in metrics.items()],
        params=[Param(name, str(value)) for name, value in params.items()],
        tags=[RunTag(name, value) for name, value in (tags or {}).items()],
    )


def log_dataset(mlflow: "MlflowClient", lake: Lake, recipe: Recipe, versions: Versions, run_id: str) -> None:
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


def _log_graph(settings: Settings, fitted: Fitted, run_id: str) -> str:
    """Log the merged graph as MLflow model `graph`, with signature and input example; return the model's id.

    MLflow copies a run's metrics one by one to a model that is logged after them.
    """
    import mlflow
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    os.environ["MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING"] = "false"  # the record fails where another thread reads them
    length, rows = fitted.recipe.window.length, len(fitted.recipe.rows)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, rows, length), WINDOW)]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, fitted.recipe.width), PREDICTION)]),
    )
    mlflow.set_tracking_uri(settings.mlflow_endpoint)
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            fitted.graph,
            name=registry.GRAPH,
            signature=signature,
            input_example={WINDOW: fitted.found.windows(fitted.materials.canary[-1:])},
            pip_requirements=[f"{package}=={version}" for package, version in runtime().items()],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
    return str(logged.model_id)


def runtime() -> dict[str, str]:
    """Return the versions of the packages that predictions depend on."""
    return {package: package_version(package) for package in RUNTIME_PACKAGES}
