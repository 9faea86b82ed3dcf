"""Monitor: let late joiners converge, collect the targets' predictions, hold windows and values against the lake."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from fieldloop.domain.recipe import Name
from tasks.acquire import QuietSeconds
from tasks.joiners import converge_joiners
from tasks.monitor import Monitored, collect_predictions, compare_with_lake, describe, figures


@flow(name="monitor", timeout_seconds=7200, validate_parameters=True)
def monitor(
    recipe: Name = "turbine-power",
    quiet_seconds: QuietSeconds = 0,
) -> Monitored:
    """Bring new predictions into table `predictions` and compare the newest release's with the lake.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        quiet_seconds: Go on until no prediction has come for so many seconds; 0 stops at what is there at the start.
    """
    converge_joiners()
    monitored = compare_with_lake(recipe, collect_predictions(quiet_seconds))
    create_markdown_artifact(describe(monitored), key="monitor", description="How the release does on its targets")
    create_table_artifact([figures(monitored)], key="monitored", description="The same in figures, for programs")
    return monitored
