"""Monitor: collect the targets' predictions, and hold windows and values against the lake."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from tasks.monitor import Monitored, collect_predictions, compare_with_lake, describe


@flow(name="monitor", timeout_seconds=7200, validate_parameters=True)
def monitor(
    recipe: Annotated[
        str, Field(description="Name of a recipe: a file of `recipes/` without its ending.", pattern=r"^[a-z0-9_-]+$")
    ] = "turbine-power",
    quiet_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=600,
            description="Go on until no prediction has come for so many seconds; 0 stops at what is there now.",
        ),
    ] = 0,
) -> Monitored:
    """Bring new predictions into table `predictions` and compare the newest release's with the lake."""
    monitored = compare_with_lake(recipe, collect_predictions(quiet_seconds))
    create_markdown_artifact(describe(monitored), key="monitor", description="How the release does on its targets")
    return monitored
