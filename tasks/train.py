"""Train: features by the recipe's one graph, candidates fitted on the training windows alone, all of it in MLflow.

    pin table versions → open the parent run → search and fit each candidate (a child run each) → close the parent
                                                 while the next one fits, what it found is logged

A task takes references, and makes the features, and what was fitted, again unless its process has them, so that it can
run or be repeated anywhere.
What was trained before from the same content is not trained again: a run that was killed, a candidate's too, goes on
where it was. Flow `maintain` closes those that nobody went on with.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import feature_graph
from fieldloop.domain.recipe import Candidate, Recipe, load_recipe
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.ancestry import newest_whole
from tasks.candidates.learner import load_libraries
from tasks.cluster import connected
from tasks.examples import Versions, read
from tasks.fitting import Fitted, fit
from tasks.leaks import refuse_leaks
from tasks.materials import Materials, prepare
from tasks.origin import packages
from tasks.results import CandidateResult, TrainResult, ranked_by, read_back
from tasks.runs import lineage, load_profiles, log_dataset, log_fitted, log_values, recipe_params
from tasks.search import Progress, ShownProgress, Trials, in_silence, search
from tasks.tags import ALGORITHM, BEST_RUN, CONTENT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_FITTED: Final[dict[str, Fitted]] = {}  # by run: what this process has fitted and not begun to log


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


@task(name="begin training", retries=2, retry_delay_seconds=5, timeout_seconds=300)
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
    timeout_seconds=7200,
)
def fit_candidate(training: Training, algorithm: str, seed: int) -> str:
    """Search and fit one candidate in a run below the parent; return the run."""
    return fit_run(Settings(), training, algorithm, seed, ShownProgress(algorithm))


@task(name="log candidate", task_run_name="log {algorithm}", retries=1, retry_delay_seconds=10)
def log_candidate(training: Training, algorithm: str, seed: int, run_id: str) -> CandidateResult:
    """Log what was fitted to its run. In a thread, where no timeout can interrupt it; MLflow's client has its own."""
    return log_run(Settings(), training, algorithm, seed, run_id)


@task(name="finish training", retries=2, retry_delay_seconds=5, timeout_seconds=300)
def finish_training(training: Training, results: Sequence[CandidateResult]) -> TrainResult:
    """Close the parent run with the best candidate's figures."""
    return finish(Settings(), training, results)


@task(name="fail training", timeout_seconds=60)
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
        ServiceError: the recipe asks for a cluster that is not there.
    """
    recipe = load_recipe(settings.root, recipe_name)
    load_profiles(settings, recipe)
    with connected(settings, recipe):  # to say now that there is none
        pass
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
    tags = {**lineage(lake, recipe, versions), CONTENT: content, "mlflow.note.content": recipe.description}
    run = mlflow.create_run(experiment_id, tags=tags, run_name=f"{recipe.name} on windows {versions.windows}")
    log_values(mlflow, run.info.run_id, {}, {"seed": seed, **recipe_params(recipe)})
    log_dataset(mlflow, lake, recipe, versions, run.info.run_id)
    return Training(recipe.name, versions, names, experiment_id, run.info.run_id)


def train_candidate(
    settings: Settings, training: Training, algorithm: str, seed: int, progress: Progress = in_silence
) -> CandidateResult:
    """Search and fit one candidate, judge its merged graph on the held-out windows, and log all; once a content.

    Raises:
        TrainingError: the tables cannot be trained from, or the recipe has no such candidate.
    """
    return log_run(settings, training, algorithm, seed, fit_run(settings, training, algorithm, seed, progress))


def fit_run(settings: Settings, training: Training, algorithm: str, seed: int, progress: Progress = in_silence) -> str:
    """Open a candidate's run, search and fit; return the run.

    Where the content is known it is the run that is there: one that has finished, or that of a process that was killed.

    Raises:
        TrainingError: as `train_candidate`.
    """
    lake, recipe = Lake(settings), load_recipe(settings.root, training.recipe)
    _candidate(recipe, algorithm)
    mlflow = registry.client(settings)
    content = _content(recipe, training.versions, algorithm, seed)
    begun = _newest(mlflow, training.experiment_id, content, ("FINISHED", "RUNNING"))
    if begun is not None and begun.info.status == "FINISHED":
        return str(begun.info.run_id)
    if begun is None:
        tags = {**lineage(lake, recipe, training.versions), ALGORITHM: algorithm, CONTENT: content}
        begun = mlflow.create_run(training.experiment_id, tags=tags, run_name=algorithm)
    run_id = str(begun.info.run_id)
    mlflow.set_tag(run_id, "mlflow.parentRunId", training.run_id)
    with _failing(mlflow, run_id):
        _FITTED[run_id] = _learnt(settings, training, algorithm, seed, run_id, progress)
    return run_id


def log_run(settings: Settings, training: Training, algorithm: str, seed: int, run_id: str) -> CandidateResult:
    """Log what was fitted for a run, and close it; fitted again after a failure, and by a process that did not fit it.

    Raises:
        TrainingError: as `train_candidate`.
    """
    recipe, mlflow = load_recipe(settings.root, training.recipe), registry.client(settings)
    if mlflow.get_run(run_id).info.status != "FINISHED":
        with _failing(mlflow, run_id):
            fitted = _FITTED.pop(run_id, None) or _learnt(settings, training, algorithm, seed, run_id, in_silence)
            log_fitted(settings, fitted, Lake(settings), training.versions, run_id, seed)
        mlflow.set_terminated(run_id)
    return read_back(recipe, mlflow.get_run(run_id))


def finish(settings: Settings, training: Training, results: Sequence[CandidateResult]) -> TrainResult:
    """Close the parent run with the figures of the candidate that is best on the validation windows.

    Raises:
        TrainingError: there is no candidate.
    """
    if not results:
        raise TrainingError(f"{training.recipe}: expected at least one fitted candidate, got none")
    _materials.cache_clear()
    recipe = load_recipe(settings.root, training.recipe)
    ranked = ranked_by(results, recipe.promotion.metric)
    best = ranked[0]
    mlflow = registry.client(settings)
    if mlflow.get_run(training.run_id).info.status != "FINISHED":
        figures = {f"{result.algorithm}.{name}": value for result in ranked for name, value in result.metrics.items()}
        log_values(mlflow, training.run_id, {**best.metrics, **figures}, {"best": best.algorithm})
        mlflow.set_tag(training.run_id, BEST_RUN, best.run_id)
        mlflow.set_terminated(training.run_id)
    url = registry.run_url(settings, training.experiment_id, training.run_id)
    return TrainResult(
        training.recipe, training.versions, training.run_id, url, recipe.promotion.metric, best, tuple(ranked)
    )


def _pinned(lake: Lake, table: str, wanted: int | None) -> int:
    """The version that is wanted, else the newest that was not made as of a past moment."""
    commits = lake.commits(table)
    if not commits:
        raise TrainingError(f"table {table} does not exist: run the flow `preprocess` first")
    newest = commits[0].version
    if wanted is not None:
        if wanted > newest:
            raise TrainingError(f"table {table}: expected a version up to {newest}, got {wanted}")
        return wanted
    whole = newest_whole(commits)
    if whole is None:
        raise TrainingError(f"table {table}: all versions were made as of a past moment: run `preprocess`, or name one")
    return whole


def _learnt(
    settings: Settings, training: Training, algorithm: str, seed: int, run_id: str, progress: Progress
) -> Fitted:
    """Search, where trials that are there count, and fit with what was found."""
    recipe = load_recipe(settings.root, training.recipe)
    with ThreadPoolExecutor(1) as beside:  # reading waits for the store and computes outside of Python
        loaded = beside.submit(load_libraries)
        materials = _materials(settings, recipe.name, recipe.digest, training.versions)
        loaded.result()
    content = _content(recipe, training.versions, algorithm, seed)
    trials = Trials(registry.client(settings), training.experiment_id, run_id, content)
    return fit(search(_candidate(recipe, algorithm), materials, seed, trials, progress), materials, seed)


@contextmanager
def _failing(mlflow: "MlflowClient", run_id: str) -> Iterator[None]:
    """Mark a run as failed where what is done for it fails."""
    try:
        yield
    except BaseException:
        mlflow.set_terminated(run_id, "FAILED")
        raise


@lru_cache(maxsize=1)
def _materials(settings: Settings, name: str, _digest_of_recipe: str, versions: Versions) -> Materials:
    """Features and targets; the candidates that one process fits after each other share them.

    Raises:
        TrainingError: the tables cannot be trained from.
    """
    recipe = load_recipe(settings.root, name)
    materials = prepare(recipe, read(Lake(settings), recipe, versions))
    refuse_leaks(materials.found)
    return materials


def _candidate(recipe: Recipe, algorithm: str) -> Candidate:
    for candidate in recipe.candidates:
        if candidate.algorithm == algorithm:
            return candidate
    known = ", ".join(candidate.algorithm for candidate in recipe.candidates)
    raise TrainingError(f"recipe {recipe.name} has no candidate `{algorithm}`; expected one of {known}")


def _content(recipe: Recipe, versions: Versions, algorithm: str, seed: int) -> str:
    """Return a digest of all that a candidate follows from: recipe, tables, seed, feature graph, libraries."""
    features = hashlib.sha256(feature_graph(recipe)[0].SerializeToString(deterministic=True)).hexdigest()
    return _digest([recipe.digest, versions.grid, versions.windows, algorithm, seed, features, packages()])


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _newest(mlflow: "MlflowClient", experiment_id: str, content: str, states: tuple[str, ...]) -> "Run | None":
    """Return the newest run made from this content that is in the first of these states that any is in."""
    found = mlflow.search_runs(
        [experiment_id], f"tags.`{CONTENT}` = '{content}'", order_by=["attributes.start_time DESC"], max_results=20
    )
    return next((run for state in states for run in found if run.info.status == state), None)
