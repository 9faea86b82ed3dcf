"""Learn: from readings in the lake to a registered model, for a recipe whose data need not come from the broker."""

from prefect import flow

from fieldloop.domain.recipe import Name
from flows.preprocess import preprocess
from flows.register import register
from flows.train import train
from flows.validate import validate
from tasks.lifecycle import profiles_of
from tasks.register import RegisterResult


@flow(name="learn", timeout_seconds=4 * 3600, validate_parameters=True)
def learn(
    recipe: Name = "turbine-power",
) -> RegisterResult:
    """Validate, preprocess, train, register.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
    """
    for profile in profiles_of(recipe):
        validate(profile)
    preprocess(recipe)
    trained = train(recipe)
    return register(recipe, trained.best.run_id)
