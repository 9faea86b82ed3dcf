"""Lifecycle: the whole loop, from the devices' messages to proved models on edge targets."""

from prefect import flow
from prefect.artifacts import create_table_artifact

from fieldloop.domain.recipe import Name
from flows.acquire import acquire
from flows.deploy import deploy, stop_asking
from flows.preprocess import preprocess
from flows.register import register
from flows.train import train
from flows.validate import validate
from tasks.acquire import QuietSeconds
from tasks.approval import LONGEST_S
from tasks.lifecycle import Learnt, Outcome, members_of, profiles_of, summarize


@flow(name="lifecycle", timeout_seconds=4 * 3600 + LONGEST_S, validate_parameters=True, on_cancellation=[stop_asking])
def lifecycle(
    recipe: Name = "turbine-power",
    quiet_seconds: QuietSeconds = 0,
) -> list[Outcome]:
    """Acquire, validate, preprocess, train, register, deploy; a model for each of the recipe's groups, if it has any.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        quiet_seconds: Acquire until no message has come for so many seconds; 0 stops at what is there at the start.
    """
    acquired = acquire(quiet_seconds)
    validated = [validate(profile) for profile in profiles_of(recipe)]
    learnt = [_learn(name) for name in members_of(recipe)]
    deployed = deploy(recipe)
    outcomes = summarize(acquired, validated, learnt, deployed)
    create_table_artifact(
        [{"stage": outcome.stage, "outcome": outcome.text} for outcome in outcomes],
        key="lifecycle",
        description=f"What one turn of the loop came to for {recipe}",
    )
    return outcomes


def _learn(recipe: str) -> Learnt:
    preprocessed = preprocess(recipe)
    trained = train(recipe)
    return Learnt(preprocessed, trained, register(recipe, trained.best.run_id))
