"""Train: search and fit a recipe's candidates, choose among them, judge them on held-out windows, log all of it."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from fieldloop.domain.recipe import AlgorithmName, Name
from tasks.train import TrainResult, begin_training, describe, fail_training, finish_training, fit_candidate

TableVersion = Annotated[int | None, Field(ge=0)]


@flow(name="train", timeout_seconds=7200, validate_parameters=True)
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
        results = [fit_candidate(training, algorithm, seed) for algorithm in training.algorithms]
    except Exception:
        fail_training(training)
        raise
    result = finish_training(training, results)
    create_markdown_artifact(describe(result), key="train", description="Candidates on the held-out windows")
    return result
