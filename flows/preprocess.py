"""Preprocess: the regular grid as a versioned table, and the index of the windows that training cuts from it."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from fieldloop.domain.recipe import Name
from tasks.preprocess import Preprocessed, build_windows, describe


@flow(name="preprocess", timeout_seconds=7200, validate_parameters=True)
def preprocess(
    recipe: Name = "turbine-power",
) -> Preprocessed:
    """Make `grid/<recipe>` and `windows/<recipe>` from the readings of all devices that passed validation.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
    """
    made = build_windows(recipe)
    create_markdown_artifact(describe(made), key="preprocess", description="What the grid and its windows hold")
    return made
