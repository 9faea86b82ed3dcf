"""Preprocess: the regular grid as a versioned table, and the index of the windows that training cuts from it."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from tasks.preprocess import Preprocessed, build_windows, describe


@flow(name="preprocess", timeout_seconds=7200, validate_parameters=True)
def preprocess(
    recipe: Annotated[
        str, Field(description="Name of a recipe: a file of `recipes/` without its ending.", pattern=r"^[a-z0-9_-]+$")
    ] = "turbine-power",
) -> Preprocessed:
    """Make `grid/<recipe>` and `windows/<recipe>` from the readings of all devices that passed validation."""
    made = build_windows(recipe)
    create_markdown_artifact(describe(made), key="preprocess", description="What the grid and its windows hold")
    return made
