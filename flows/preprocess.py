"""Preprocess: the regular grid as a versioned table, and the index of the windows that training cuts from it."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import AwareDatetime

from fieldloop.domain.recipe import Name
from tasks.preprocess import Preprocessed, build_windows, describe


@flow(name="preprocess", timeout_seconds=7200, validate_parameters=True)
def preprocess(
    recipe: Name = "turbine-power",
    as_of: AwareDatetime | None = None,
    include_late: bool = True,
) -> Preprocessed:
    """Make `grid/<recipe>` and `windows/<recipe>` from the readings of all devices that passed validation.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        as_of: A past moment after which nothing counts, with its time zone; all there is where empty. A training that
            names no versions goes on with the newest tables that were made without it.
        include_late: Whether what happened before that moment counts although it arrived after it.
    """
    made = build_windows(recipe, as_of, include_late)
    create_markdown_artifact(describe(made), key="preprocess", description="What the grid and its windows hold")
    return made
