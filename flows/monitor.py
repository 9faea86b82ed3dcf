"""Monitor: late joiners converge, predictions are collected and held against the lake, inputs against the training."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from fieldloop.domain.recipe import Name
from tasks import drift
from tasks.acquire import QuietSeconds
from tasks.joiners import converge_joiners
from tasks.monitor import Monitored, collect_predictions, compare_with_lake, describe, figures


@flow(name="monitor", timeout_seconds=7200, validate_parameters=True)
def monitor(
    recipe: Name = "turbine-power",
    quiet_seconds: QuietSeconds = 0,
) -> Monitored:
    """Bring new predictions into table `predictions`, compare the newest release's with the lake, look for drift.

    A drift, as the recipe's `drift` defines it, is announced by the event `fieldloop.drift.found`, which trains anew.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        quiet_seconds: Go on until no prediction has come for so many seconds; 0 stops at what is there at the start.
    """
    converge_joiners()
    monitored = compare_with_lake(recipe, collect_predictions(quiet_seconds))
    compared = drift.compare_with_training(recipe)
    text = f"{describe(monitored)}\n\n{drift.describe(compared)}"
    create_markdown_artifact(text, key="monitor", description="How the release does on its targets")
    row = {**figures(monitored), **drift.figures(compared)}
    create_table_artifact([row], key="monitored", description="The same in figures, for programs")
    return monitored
