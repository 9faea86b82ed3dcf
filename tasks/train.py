"""Train: features by the recipe's one graph, candidates fitted on the training windows alone, all of it in MLflow.

    pin table versions → open the parent run → search and fit each candidate (a child run each) → close the parent

A candidate's task takes references and makes the features (seconds) unless its process has them, so that it can run or
be repeated anywhere.
What was trained before from the same content is not trained again: a run that was killed goes on where it was.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from prefect import task

from fieldloop.domain.bootstrap import LEVEL
from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import feature_graph
from fieldloop.domain.metrics import gain
from fieldloop.domain.recipe import Candidate, Metric, Recipe, load_recipe
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.ancestry import newest_whole
from tasks.cluster import connected
from tasks.examples import Versions, read
from tasks.fitting import Materials, fit, prepare
from tasks.leaks import refuse_leaks
from tasks.origin import packages
from tasks.runs import (
    NOTES,
    VALIDATION,
    intervals_of,
    lineage,
    load_profiles,
    log_dataset,
    log_fitted,
    log_values,
    recipe_params,
)
from tasks.search import Progress, ShownProgress, Trials, in_silence, search

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEST_RUN: Final = "fieldloop.best_run"  # tag of a parent run
ALGORITHM: Final = "fieldloop.algorithm"
CONTENT: Final = "fieldloop.content"  # tag: digest of all that a run follows from


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
        validation: on the windows that choose, learnt from the training windows alone.
        chosen_by: of these, the metric that decides.
        intervals: low and high end of each metric's interval, as far as it can be said.
        notes: what a person should know before believing them, see `tasks.notes`.
        rows: windows by use: train, validation, test, embargo, no_target.
        fit_s: seconds that fitting took.
    """

    algorithm: str
    run_id: str
    metrics: dict[Metric, float]
    validation: dict[Metric, float]
    chosen_by: float
    intervals: dict[Metric, tuple[float, float]]
    notes: tuple[str, ...]
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
        metric: the one that decides.
        best: the candidate that the recipe's metric prefers on the validation windows.
        candidates: all of them, best first.
    """

    recipe: str
    versions: Versions
    run_id: str
    run_url: str
    metric: Metric
    best: CandidateResult
    candidates: tuple[CandidateResult, ...]


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
    timeout_seconds=7200,
    tags=["mlflow", "lake", "compute"],
)
def fit_candidate(training: Training, algorithm: str, seed: int) -> CandidateResult:
    """Search and fit one candidate, and log it as a run below the parent."""
    return train_candidate(Settings(), training, algorithm, seed, ShownProgress(algorithm))


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
    lake = Lake(settings)
    recipe = load_recipe(settings.root, training.recipe)
    candidate = _candidate(recipe, algorithm)
    mlflow = registry.client(settings)
    content = _content(recipe, training.versions, algorithm, seed)
    done = _newest(mlflow, training.experiment_id, content, ("FINISHED",))
    if done is not None:
        return _result(recipe, done)
    tags = {
        **lineage(lake, recipe, training.versions),
        "mlflow.parentRunId": training.run_id,
        ALGORITHM: algorithm,
        CONTENT: content,
    }
    run_id = mlflow.create_run(training.experiment_id, tags=tags, run_name=algorithm).info.run_id
    try:
        materials = _materials(settings, recipe.name, recipe.digest, training.versions)
        trials = Trials(mlflow, training.experiment_id, run_id, content)
        found = search(candidate, materials, seed, trials, progress)
        log_fitted(settings, fit(found, materials, seed), lake, training.versions, run_id, seed)
    except BaseException:
        mlflow.set_terminated(run_id, "FAILED")
        raise
    mlflow.set_terminated(run_id)
    return _result(recipe, mlflow.get_run(run_id))


def finish(settings: Settings, training: Training, results: Sequence[CandidateResult]) -> TrainResult:
    """Close the parent run with the figures of the candidate that is best on the validation windows.

    Raises:
        TrainingError: there is no candidate.
    """
    if not results:
        raise TrainingError(f"{training.recipe}: expected at least one fitted candidate, got none")
    _materials.cache_clear()
    recipe = load_recipe(settings.root, training.recipe)
    ranked = _ranked(results, recipe.promotion.metric)
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


def describe(result: TrainResult) -> str:
    """Return the training as Markdown for a person."""
    names = list(result.best.metrics)
    rows = [_row(entry, names, entry is result.best) for entry in result.candidates]
    used = result.best.rows
    return "\n".join(
        (
            f"[MLflow run]({result.run_url}) of recipe `{result.recipe}`, from `grid/{result.recipe}` version "
            f"{result.versions.grid} and `windows/{result.recipe}` version {result.versions.windows}.",
            "",
            f"| candidate | {result.metric}, choosing | {' | '.join(names)} | fit, s |",
            f"|---{'|---' * (len(names) + 2)}|",
            *rows,
            "",
            f"Learnt from {used['train']:,} windows, chosen by {used['validation']:,} others, judged on "
            f"{used['test']:,} held-out ones (in brackets where {LEVEL:.0%} of the draws of their blocks lie); "
            f"{used['embargo']:,} in the embargo or later and {used['no_target']:,} without a target served none.",
            *(f"\n**Note.** {note}" for note in result.best.notes),
        )
    )


def shown(metrics: Mapping[Metric, float]) -> str:
    """Return metrics in a line for a person."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _row(entry: CandidateResult, names: Sequence[Metric], best: bool) -> str:
    mark = "**" if best else ""
    figures = " | ".join(_with_interval(entry, name) for name in names)
    return f"| {mark}{entry.algorithm}{mark} | {entry.chosen_by:.4g} | {figures} | {entry.fit_s:.1f} |"


def _with_interval(entry: CandidateResult, name: Metric) -> str:
    figure = f"{entry.metrics[name]:.4g}"
    if name not in entry.intervals:
        return figure
    low, high = entry.intervals[name]
    return f"{figure} ({low:.4g} – {high:.4g})"


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


def _ranked(results: Sequence[CandidateResult], metric: Metric) -> list[CandidateResult]:
    """Candidates by a metric on the validation windows, best first; a tie keeps the recipe's order."""
    ranked: list[CandidateResult] = []
    for result in results:
        leads = (gain(metric, result.chosen_by, other.chosen_by) > 0 for other in ranked)
        ranked.insert(next((place for place, lead in enumerate(leads) if lead), len(ranked)), result)
    return ranked


def _content(recipe: Recipe, versions: Versions, algorithm: str, seed: int) -> str:
    """Return a digest of all that a candidate follows from: recipe, tables, seed, feature graph, libraries."""
    features = hashlib.sha256(feature_graph(recipe)[0].SerializeToString(deterministic=True)).hexdigest()
    return _digest([recipe.digest, versions.grid, versions.windows, algorithm, seed, features, packages()])


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _newest(mlflow: "MlflowClient", experiment_id: str, content: str, states: tuple[str, ...]) -> "Run | None":
    """Return the newest run made from this content that is in one of these states."""
    found = mlflow.search_runs(
        [experiment_id], f"tags.`{CONTENT}` = '{content}'", order_by=["attributes.start_time DESC"], max_results=20
    )
    return next((run for run in found if run.info.status in states), None)


def _result(recipe: Recipe, run: "Run") -> CandidateResult:
    """Read back what `log_fitted` wrote."""
    figures = run.data.metrics
    rows = {name.removeprefix("rows."): int(count) for name, count in figures.items() if name.startswith("rows.")}
    return CandidateResult(
        run.data.tags[ALGORITHM],
        run.info.run_id,
        {name: figures[name] for name in recipe.metrics()},
        {name: figures[f"{VALIDATION}{name}"] for name in recipe.metrics()},
        figures[f"{VALIDATION}{recipe.promotion.metric}"],
        intervals_of(recipe, figures),
        tuple(run.data.tags[NOTES].splitlines()),
        rows,
        figures["fit_s"],
    )
