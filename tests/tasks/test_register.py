"""Registration on a small farm: parity, champion and challenger, with the real lake and the real MLflow."""

from typing import Any

import msgspec
import onnx
import pytest

from fieldloop.domain.errors import ParityError, TrainingError
from fieldloop.domain.parity import Certificate
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from tasks import candidates
from tasks.register import PARITY, RegisterResult, challenge, describe, enter, newest_best_run, prove
from tasks.train import Training, begin, finish, train_candidate
from tests.tasks.farm import FarmSettings, farm, write_tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-register"
SEED = 7


@pytest.fixture(scope="module")
def settings(platform: Settings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm's settings."""
    return farm(platform, tmp_path_factory.mktemp("farm"), NAME)


@pytest.fixture(scope="module")
def training(settings: FarmSettings) -> Training:
    """A training that has begun."""
    return begin(settings, NAME, [], *write_tables(settings, NAME), SEED)


def fitted(settings: FarmSettings, training: Training, algorithm: str, seed: int = SEED) -> str:
    """The run of a fitted candidate."""
    return train_candidate(settings, training, algorithm, seed).run_id


def registered(settings: FarmSettings, run_id: str) -> RegisterResult:
    """What the flow does with a run."""
    proved = prove(settings, NAME, run_id)
    return challenge(settings, proved, enter(settings, proved).version)


def alias(settings: FarmSettings, name: str) -> int | None:
    """Number of the version that has an alias."""
    found = registry.find(settings, NAME, name)
    return found.version if found else None


def test_champion_and_challengers(settings: FarmSettings, training: Training) -> None:
    """The first version is champion; a better one takes its place; a worse one stays challenger; each once."""
    ridge, trees, boosting = (fitted(settings, training, name) for name in ("ridge", "extra_trees", "xgboost"))

    first = registered(settings, ridge)
    assert (first.version, first.verdict.promoted, first.verdict.champion) == (1, True, None)

    better = registered(settings, boosting)
    assert (better.version, better.verdict.promoted, better.verdict.champion) == (2, True, 1)
    assert better.verdict.champion_metrics == pytest.approx(first.verdict.metrics)
    assert (alias(settings, "champion"), alias(settings, "challenger")) == (2, None)

    worse = registered(settings, trees)
    assert (worse.version, worse.verdict.promoted, worse.verdict.alias) == (3, False, "challenger")
    assert "not better" in worse.verdict.reason
    assert (alias(settings, "champion"), alias(settings, "challenger")) == (2, 3)

    again = registered(settings, boosting)
    assert (again.version, again.verdict.promoted, again.verdict.alias) == (2, False, "champion")
    assert (alias(settings, "champion"), alias(settings, "challenger")) == (2, 3)

    card = registry.client(settings).get_model_version(NAME, "2").description
    assert "mae " in card
    assert "largest difference" in card
    assert "Parity: graph and native model differ" in describe(better)


def test_certificate_is_logged(settings: FarmSettings, training: Training) -> None:
    """Every kind of candidate is proved on the recipe's rows, gaps among them, and the certificate says so."""
    for algorithm in training.algorithms:
        run_id = fitted(settings, training, algorithm)
        proved = prove(settings, NAME, run_id)
        logged = msgspec.json.decode(registry.run_artifact(settings, run_id, PARITY), type=Certificate)
        assert logged == proved.certificate
        assert logged.passed
        assert logged.rows == 2000
        assert logged.rows_with_gaps > 300
        assert logged.rows_alone == 1000
        assert "onnxruntime" in logged.runtime


def test_wrong_graph_is_refused(settings: FarmSettings, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is off by a hundredth of a kilowatt more than allowed is certified as such and not registered."""
    real = candidates.convert

    def spoilt(model: candidates.Model, width: int) -> onnx.ModelProto:
        converted = real(model, width)
        base: Any = next(a for n in converted.graph.node for a in n.attribute if a.name == "base_values")
        base.floats[0] += 0.02
        return converted

    monkeypatch.setattr(candidates, "convert", spoilt)
    run_id = fitted(settings, training, "xgboost", seed=SEED + 1)
    with pytest.raises(ParityError, match=r"differ by at most 0\.01 on 2000 held-out windows, got 0\.02"):
        prove(settings, NAME, run_id)
    assert not msgspec.json.decode(registry.run_artifact(settings, run_id, PARITY), type=Certificate).passed
    versions = registry.client(settings).search_model_versions(f"name = '{NAME}'")
    assert run_id not in [version.run_id for version in versions]


def test_newest_training_is_the_default(settings: FarmSettings) -> None:
    """Without a run, the best candidate of the newest finished training is meant; one still running is not."""
    versions = write_tables(settings, NAME)
    done = begin(settings, NAME, ["ridge"], *versions, SEED)
    result = finish(settings, done, [train_candidate(settings, done, "ridge", SEED)])
    begin(settings, NAME, ["ridge"], *versions, SEED + 1)
    assert newest_best_run(settings, NAME) == result.best.run_id


def test_nothing_trained(settings: FarmSettings) -> None:
    """A recipe that was never trained says which flow to run."""
    with pytest.raises(TrainingError, match="run the flow `train` first"):
        newest_best_run(settings, "never-trained")


def test_parent_run_is_no_candidate(settings: FarmSettings, training: Training) -> None:
    """The parent of a training has no graph and is refused by name."""
    with pytest.raises(TrainingError, match="expected the run of a candidate"):
        prove(settings, NAME, training.run_id)
