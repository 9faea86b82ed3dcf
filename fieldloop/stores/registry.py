"""The model registry: MLflow's registered versions, their aliases and what their runs carry.

Experiment and registered model bear the recipe's name. A version's run holds the merged graph (model `graph`) and the
JSON files of a release under `release/`.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from fieldloop.domain.errors import StoreError
from fieldloop.stores.loading import uncollected
from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

Alias = Literal["champion", "challenger"]
GRAPH: Final = "graph"
_GRAPH_FILE: Final = "model.onnx"
_REFERENCE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)(?:/(\d+)|@([a-z]+))")
_PAGE: Final = 1_000  # versions read at once
SHOWN: Final = 10  # versions that an error names
_MISSING: Final = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


@dataclass(frozen=True)
class ModelVersion:
    """One registered version.

    Attributes:
        name: registered model.
        version: its number, from 1.
        run_id: the MLflow run that made it.
        aliases: those that point to it.
        tags: lineage and figures, see `tasks.train` and `tasks.register`.
        created_ms: when it was registered, UTC milliseconds since 1970.
    """

    name: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created_ms: int

    @property
    def label(self) -> str:
        """How people and commands name it."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Trained:
    """A run of the experiment of a recipe: its id, name and tags, and when it began, UTC milliseconds since 1970."""

    run_id: str
    name: str
    tags: Mapping[str, str]
    began_ms: int


def client(settings: Settings) -> "MlflowClient":
    """Return a client of this installation's MLflow server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is first imported
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with uncollected():
        from mlflow import MlflowClient

    return MlflowClient(tracking_uri=settings.mlflow_endpoint, registry_uri=settings.mlflow_endpoint)


def experiment(settings: Settings, name: str) -> str:
    """Return the id of an experiment, made where there is none, which MLflow's pages show as one of model training."""
    mlflow = client(settings)
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(mlflow.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"}))


def version(settings: Settings, model: str, alias_or_number: str | int) -> ModelVersion:
    """Return a version by its number or by an alias.

    Raises:
        StoreError: there is no such version.
    """
    found = find(settings, model, alias_or_number)
    if found is None:
        there = ", ".join(str(each.version) for each in versions(settings, model)[:SHOWN])
        raise StoreError(
            f"model {model}: expected a version {alias_or_number!r} in MLflow at {settings.mlflow_endpoint}, got none: "
            + (f"the newest are {there}" if there else "run the flows `train` and `register` first")
        )
    return found


def find(settings: Settings, model: str, alias_or_number: str | int) -> ModelVersion | None:
    """Return a version by its number or by an alias, None where there is none."""
    mlflow = client(settings)
    from mlflow.exceptions import MlflowException

    try:
        if isinstance(alias_or_number, int) or alias_or_number.isdecimal():
            return _described(mlflow.get_model_version(model, str(alias_or_number)))
        return _described(mlflow.get_model_version_by_alias(model, alias_or_number))
    except MlflowException as exc:
        if exc.error_code in _MISSING:
            return None
        raise StoreError(f"MLflow at {settings.mlflow_endpoint} refuses or does not answer: {exc}") from exc


def named(settings: Settings, reference: str) -> ModelVersion:
    """Return the version that a person means: `turbine-power/3`, `turbine-power@champion`.

    Raises:
        StoreError: it names no version, or none that there is; says which there are.
    """
    parsed = _REFERENCE.fullmatch(reference.removeprefix("models:/"))
    if parsed is None:
        raise StoreError(f"expected a version such as turbine-power/3 or turbine-power@champion, got {reference!r}")
    model, number, alias = parsed.groups()
    found = find(settings, model, number or alias)
    if found is not None:
        return found
    there = versions(settings, model)
    known = ", ".join(f"{each.version}{''.join(f' @{alias}' for alias in each.aliases)}" for each in there)
    models = ", ".join(dict.fromkeys(each.name for each in versions(settings))) or "none yet"
    raise StoreError(
        f"model {model} has no version {number or f'@{alias}'}; it has {known}"
        if there
        else f"there is no model {model!r} in MLflow; there are: {models}"
    )


def versions(settings: Settings, model: str | None = None) -> list[ModelVersion]:
    """Return the registered versions, of one model or of all, the newest first.

    Raises:
        StoreError: MLflow refuses or does not answer.
    """
    return _versions(settings, f"name = '{model}'" if model else "")


def versions_tagged(settings: Settings, key: str, value: str) -> list[ModelVersion]:
    """Return the versions that bear a tag, the newest first.

    Raises:
        StoreError: MLflow refuses or does not answer.
    """
    return _versions(settings, f"tags.`{key}` = '{value}'")


def register(settings: Settings, model: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register the graph of a run; a run that is registered already keeps its version.

    Raises:
        StoreError: the run has no graph.
    """
    mlflow = client(settings)
    known = [entry for entry in mlflow.search_model_versions(f"name = '{model}'") if entry.run_id == run_id]
    if known:
        for key, value in tags.items():
            mlflow.set_model_version_tag(model, known[0].version, key, value)
        return version(settings, model, int(known[0].version))
    if not mlflow.search_registered_models(f"name = '{model}'"):
        mlflow.create_registered_model(model)
    source, model_id = _logged_graph(mlflow, run_id)
    created = mlflow.create_model_version(model, source, run_id, dict(tags), model_id=model_id)
    return version(settings, model, int(created.version))


def describe(settings: Settings, of: ModelVersion, description: str) -> None:
    """Set a version's description, Markdown."""
    client(settings).update_model_version(of.name, str(of.version), description)


def point(settings: Settings, alias: Alias, to: ModelVersion) -> None:
    """Make an alias point to a version, and to no other."""
    client(settings).set_registered_model_alias(to.name, alias, str(to.version))


def remove(settings: Settings, alias: Alias, model: str) -> None:
    """Take an alias from whichever version has it."""
    if find(settings, model, alias) is not None:
        client(settings).delete_registered_model_alias(model, alias)


def graph(settings: Settings, of: ModelVersion) -> bytes:
    """Return the merged graph of a version, `window` → `prediction`.

    Raises:
        StoreError: the version's run has none.
    """
    return run_graph(settings, of.run_id)


def artifact(settings: Settings, of: ModelVersion, path: str) -> bytes:
    """Return a file of the version's run, for instance `release/window.json`.

    Raises:
        StoreError: there is none.
    """
    return run_artifact(settings, of.run_id, path)


def holds(settings: Settings, of: ModelVersion, path: str) -> bool:
    """Say whether the version's run has a file; what was trained by an older Fieldloop may lack some."""
    folder = path.rpartition("/")[0]
    return any(file.path == path for file in client(settings).list_artifacts(of.run_id, folder))


def run_graph(settings: Settings, run_id: str) -> bytes:
    """Return the merged graph of a run, registered or not.

    Raises:
        StoreError: it has none.
    """
    location, _ = _logged_graph(client(settings), run_id)
    return _downloaded(settings, f"{location}/{_GRAPH_FILE}", run_id)


def has_run(settings: Settings, run_id: str) -> bool:
    """Say whether there is such a run."""
    try:
        return bool(run_tags(settings, run_id))
    except StoreError:
        return False


def run_tags(settings: Settings, run_id: str) -> dict[str, str]:
    """Return the tags of a run.

    Raises:
        StoreError: there is no such run.
    """
    mlflow = client(settings)
    from mlflow.exceptions import MlflowException

    try:
        return dict(mlflow.get_run(run_id).data.tags)
    except MlflowException as exc:
        raise StoreError(f"MLflow at {settings.mlflow_endpoint}: no run {run_id} ({exc})") from exc


def runs(settings: Settings, name: str, tags: Mapping[str, str | None], most: int) -> list[Trained]:
    """Return finished runs of an experiment that bear these tags, the newest first; None stands for any value.

    Raises:
        StoreError: MLflow refuses or does not answer.
    """
    mlflow = client(settings)
    from mlflow.exceptions import MlflowException

    wanted = [f"tags.`{tag}` != ''" if value is None else f"tags.`{tag}` = '{value}'" for tag, value in tags.items()]
    try:
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None:
            return []
        found = mlflow.search_runs(
            [experiment.experiment_id],
            " and ".join(("attributes.status = 'FINISHED'", *wanted)),
            max_results=most,
            order_by=["attributes.start_time DESC"],
        )
    except MlflowException as exc:
        raise StoreError(f"MLflow at {settings.mlflow_endpoint} refuses or does not answer: {exc}") from exc
    return [
        Trained(str(run.info.run_id), str(run.info.run_name), dict(run.data.tags), int(run.info.start_time))
        for run in found
    ]


def run_artifact(settings: Settings, run_id: str, path: str) -> bytes:
    """Return a file of a run.

    Raises:
        StoreError: there is none.
    """
    location = client(settings).get_run(run_id).info.artifact_uri
    return _downloaded(settings, f"{location}/{path}", run_id)


def run_url(settings: Settings, experiment_id: str, run_id: str) -> str:
    """Return the page of a run."""
    return f"{settings.mlflow_endpoint}/#/experiments/{experiment_id}/runs/{run_id}"


def version_url(settings: Settings, of: ModelVersion) -> str:
    """Return the page of a version."""
    return f"{settings.mlflow_endpoint}/#/models/{of.name}/versions/{of.version}"


def _versions(settings: Settings, condition: str) -> list[ModelVersion]:
    mlflow = client(settings)
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.search_model_versions(condition or None, max_results=_PAGE, order_by=["creation_timestamp DESC"])
        models = {model.name: model.aliases for model in mlflow.search_registered_models(max_results=_PAGE)}
    except MlflowException as exc:
        raise StoreError(f"MLflow at {settings.mlflow_endpoint} refuses or does not answer: {exc}") from exc
    for entry in found:  # a search leaves them out
        entry.aliases = [
            alias for alias, number in models.get(entry.name, {}).items() if str(number) == str(entry.version)
        ]
    return [_described(entry) for entry in found]


def _downloaded(settings: Settings, uri: str, run_id: str) -> bytes:
    """A file through MLflow's proxy; the address names the file whole, so that no ambient server is asked."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="fieldloop-") as folder:
        try:
            path = download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=settings.mlflow_endpoint)
            return Path(path).read_bytes()
        except (MlflowException, OSError) as exc:
            raise StoreError(f"MLflow run {run_id}: expected artifact {uri}, got none ({exc}): train again") from exc


def _logged_graph(mlflow: "MlflowClient", run_id: str) -> tuple[str, str]:
    """The address and the id of the model `graph` that a run logged."""
    run = mlflow.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs else []:
        logged = mlflow.get_logged_model(output.model_id)
        if logged.name == GRAPH:
            return str(logged.artifact_location), str(logged.model_id)
    raise StoreError(f"MLflow run {run_id}: expected a model `{GRAPH}`, got none: train again")


def _described(entry: "MlflowVersion") -> ModelVersion:
    return ModelVersion(
        str(entry.name),
        int(entry.version),
        str(entry.run_id),
        tuple(entry.aliases),
        dict(entry.tags),
        int(entry.creation_timestamp),
    )
