"""Retrace: train as of a past moment, with and without what arrived after it, and show the difference."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import AwareDatetime, Field

from fieldloop.domain.recipe import AlgorithmName, Name
from flows.preprocess import preprocess
from flows.train import train
from tasks.retrace import Retraced, compare_trainings, describe, moment_of


@flow(name="retrace", timeout_seconds=4 * 3600, validate_parameters=True)
def retrace(
    recipe: Name = "turbine-power",
    as_of: AwareDatetime | None = None,
    candidates: Annotated[list[AlgorithmName] | None, Field(max_length=16)] = None,
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 7,
) -> Retraced:
    """Train twice on nothing that happened after a moment: once on all of it, once on what had arrived by then.

    Nothing is registered; `register` takes the run of either training.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        as_of: The past moment, with its time zone; a week ago where empty.
        candidates: Which of the recipe's candidates to fit; all where empty.
        seed: Seed of everything random.
    """
    moment = moment_of(as_of)
    tables = [preprocess(recipe, moment, late) for late in (True, False)]
    trainings = [train(recipe, candidates, each.grid_version, each.windows_version, seed) for each in tables]
    result = compare_trainings(moment, tables[0], tables[1], trainings[0], trainings[1])
    create_markdown_artifact(describe(result), key="retrace", description=f"What came after {moment} and changed")
    return result
