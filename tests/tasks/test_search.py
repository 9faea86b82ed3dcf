"""Search of settings, with the real MLflow: what it finds, what it prunes, and that a killed one goes on."""

from typing import Any

import pytest

from fieldloop.domain.recipe import load_recipe
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks import search as searching
from tasks.examples import read
from tasks.materials import Materials, prepare
from tasks.search import Trials, in_silence, search
from tasks.train import begin, train_candidate
from tests.tasks.farm import FarmSettings, farm, write_tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-search"
SEED = 7
SPACE = "search: {depth: {low: 1, high: 6}, learning_rate: {low: 0.01, high: 0.5, log: true}}"


@pytest.fixture(scope="module")
def settings(platform: Settings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm's settings, with something to search and a budget of six trials."""
    made = farm(platform, tmp_path_factory.mktemp("farm"), NAME)
    path = made.root / "recipes" / f"{NAME}.yaml"
    text = path.read_text().replace("trees: 30, depth: 4, learning_rate: 0.3", f"trees: 15, depth: 1, {SPACE}")
    path.write_text(text.replace("promotion:", "search: {trials: 6}\npromotion:"))
    return made


@pytest.fixture(scope="module")
def versions(settings: FarmSettings) -> tuple[int, int]:
    """The farm's tables."""
    return write_tables(settings, NAME)


@pytest.fixture(scope="module")
def materials(settings: FarmSettings, versions: tuple[int, int]) -> Materials:
    """What the candidates learn from."""
    training = begin(settings, NAME, ["xgboost"], *versions, SEED)
    recipe = load_recipe(settings.root, NAME)
    return prepare(recipe, read(Lake(settings), recipe, training.versions))


def trials_of(settings: FarmSettings, content: str) -> tuple[Trials, str, str]:
    """The trials of a search under a run of its own, its experiment and the run."""
    mlflow = registry.client(settings)
    experiment_id = registry.experiment(settings, NAME)
    run_id = mlflow.create_run(experiment_id).info.run_id
    return Trials(mlflow, experiment_id, run_id, content), experiment_id, run_id


def test_search_finds_better_settings(settings: FarmSettings, versions: tuple[int, int]) -> None:
    """The candidate's run has the settings that won, better ones than the recipe's own, and its trials below it."""
    shown: list[tuple[int, int]] = []
    training = begin(settings, NAME, ["xgboost"], *versions, SEED)
    result = train_candidate(settings, training, "xgboost", SEED, lambda done, of, _: shown.append((done, of)))
    assert shown == [(number, 6) for number in range(1, 7)]
    mlflow = registry.client(settings)
    assert int(mlflow.get_run(result.run_id).data.params["depth"]) > 1
    trials = mlflow.search_runs([training.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'")
    assert len(trials) == 6
    own = next(run for run in trials if run.info.run_name == "trial 0")
    assert own.data.params["depth"] == "1"
    assert result.validation["mae"] < own.data.metrics["validation.mae"]


def test_a_killed_search_goes_on(settings: FarmSettings, materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its fourth trial, it repeats none of the first three, and ends where an undisturbed one ends."""
    (candidate, *_) = materials.recipe.candidates
    undisturbed = search(candidate, materials, SEED, trials_of(settings, "whole")[0], in_silence)

    real, begun = searching.try_out, 0

    def dying(*arguments: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(searching, "try_out", dying)
    monkeypatch.setattr(searching, "_LEAST_ROWS", 1_000_000)  # one fit a trial
    with pytest.raises(KeyboardInterrupt):
        search(candidate, materials, SEED, trials_of(settings, "killed")[0], in_silence)
    again, experiment_id, run_id = trials_of(settings, "killed")
    numbers: list[int] = []
    found = search(candidate, materials, SEED, again, lambda done, _of, _best: numbers.append(done))
    assert numbers == [4, 5, 6]
    assert found == undisturbed
    below = registry.client(settings).search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert len(below) == 6


def test_what_lags_behind_is_pruned(
    settings: FarmSettings, materials: Materials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that is worse than most after a ninth of the windows is not fitted to all of them."""
    monkeypatch.setattr(searching, "_LEAST_ROWS", 1)
    monkeypatch.setattr(searching, "_UNPRUNED", 1)
    (candidate, *_) = materials.recipe.candidates
    trials = trials_of(settings, "pruned")[0]
    search(candidate, materials, SEED, trials, in_silence)
    past = trials.past()
    assert [trial.number for trial in past] == list(range(6))
    assert any(trial.pruned and len(trial.steps) < 3 for trial in past)
    assert all(len(trial.steps) == 3 for trial in past if not trial.pruned)


def test_a_budget_in_time(settings: FarmSettings, materials: Materials) -> None:
    """When the seconds are spent no new trial begins, and what past trials took counts."""
    (candidate, *_) = materials.recipe.candidates
    budget = materials.recipe.search.model_copy(update={"seconds": 1e-6})
    short = Materials(**{**vars(materials), "recipe": materials.recipe.model_copy(update={"search": budget})})
    trials = trials_of(settings, "short")[0]
    search(candidate, short, SEED, trials, in_silence)
    search(candidate, short, SEED, trials, in_silence)
    assert len(trials.past()) == 1
