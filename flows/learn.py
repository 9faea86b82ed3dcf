"""Learn: from readings in the lake to a registered model, for a recipe whose data need not come from the broker."""

from datetime import datetime

from prefect import flow
from pydantic import AwareDatetime

from fieldloop.domain.recipe import Name
from flows.preprocess import preprocess
from flows.register import register
from flows.train import train
from flows.validate import validate
from tasks.approval import LONGEST_S
from tasks.lifecycle import members_of, profiles_of
from tasks.register import RegisterResult
from tasks.results import TrainResult


@flow(name="learn", timeout_seconds=4 * 3600 + LONGEST_S, validate_parameters=True)
def learn(
    recipe: Name = "turbine-power",
    as_of: AwareDatetime | None = None,
    include_late: bool = True,
) -> list[RegisterResult | TrainResult]:
    """Validate, preprocess, train, register; a model for each of the recipe's groups, if it has any.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        as_of: A past moment after which nothing counts, with its time zone; all there is where empty. What is learnt
            as of then is not registered, so that it cannot become champion; `register` takes its run.
        include_late: Whether what happened before that moment counts although it arrived after it.
    """
    for profile in profiles_of(recipe):
        validate(profile)
    return [_learn(name, as_of, include_late) for name in members_of(recipe)]


def _learn(recipe: str, as_of: datetime | None, include_late: bool) -> RegisterResult | TrainResult:
    made = preprocess(recipe, as_of, include_late)
    trained = train(recipe, None, made.grid_version, made.windows_version)
    if as_of is not None:
        return trained
    return register(recipe, trained.best.run_id)
