"""Train: search and fit a recipe's candidates, choose among them, judge them on held-out windows, log all of it."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from fieldloop.domain.recipe import AlgorithmName, Name
from tasks.results import TrainResult, describe
from tasks.train import begin_training, fail_training, finish_training, fit_candidate, log_candidate

TableVersion = Annotated[int | None, Field(ge=0)]
_LOGGED_AT_ONCE = 2  # candidates, while the next one fits


@flow(
    name="train",
    timeout_seconds=7200,
    validate_parameters=True,
    task_runner=ThreadPoolTaskRunner(max_workers=_LOGGED_AT_ONCE),  # type: ignore[arg-type]  # Prefect's own classes
)
def train(
    recipe: Name = "turbine-power",
    candidates: Annotated[list[AlgorithmName] | None, Field(max_length=16)] = None,
    grid_version: TableVersion = None,
    windows_version: TableVersion = None,
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 7,
) -> TrainResult:
    """Fit candidates on the training windows, choose on the validation windows, judge on the held-out ones.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        candidates: Which of the recipe's candidates to fit; all where empty.
        grid_version: Version of table `grid/<recipe>`; the newest where empty.
        windows_version: Version of table `windows/<recipe>`; the newest where empty.
        seed: Seed of everything random.
    """
    training = begin_training(recipe, candidates or [], grid_version, windows_version, seed)
    try:
        logged = [
            log_candidate.submit(training, algorithm, seed, fit_candidate(training, algorithm, seed))
            for algorithm in training.algorithms
        ]
        results = [candidate.result() for candidate in logged]
    except Exception:  # whatever it was, it is raised again: without this the parent run would stay open in MLflow
        fail_training(training)
        raise
    result = finish_training(training, results)
    create_markdown_artifact(describe(result), key="train", description="Candidates on the held-out windows")
    return result
