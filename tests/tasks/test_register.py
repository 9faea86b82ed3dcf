"""Registration on a small farm: parity, champion and challenger, with the real lake and the real MLflow."""

from dataclasses import replace
from typing import Any

import msgspec
import onnx
import pytest

from fieldloop.domain.errors import ParityError, TrainingError
from fieldloop.domain.parity import Certificate
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from tasks import candidates
from tasks.challenge import BASIS, Outcome, Verdict, judge
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
    assert registry.version(settings, NAME, 3).tags["promotion"] == "lost"
    assert (alias(settings, "champion"), alias(settings, "challenger")) == (2, 3)

    again = registered(settings, boosting)
    assert again == better
    assert (alias(settings, "champion"), alias(settings, "challenger")) == (2, 3)

    card = registry.client(settings).get_model_version(NAME, "2").description
    assert "| **mae** |" in card
    assert "champion 1 |" in card
    assert "| T1 |" in card
    assert len(card) <= 5000
    assert "largest difference" in card
    assert "Parity: graph and native model differ" in describe(better)


def test_a_champion_of_another_schema_or_that_cannot_be_loaded(
    settings: FarmSettings, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is replaced unseen, and neither stops the flow: the reason says what is the matter and what to do."""
    version = registry.version(settings, NAME, 3)
    real = registry.artifact

    def longer(of: Settings, version: registry.ModelVersion, path: str) -> bytes:
        data = real(of, version, path)
        return data.replace(b'"length":4', b'"length":6') if version.version == 2 else data

    monkeypatch.setattr(registry, "artifact", longer)
    found = compared(settings, version)
    assert (found.outcome, found.champion) == (Outcome.INCOMPARABLE, 2)
    assert "champion 2 reads windows of another schema (length 6, not 4); move the alias by hand" in found.reason

    monkeypatch.setattr(registry, "artifact", real)
    graph = registry.graph
    monkeypatch.setattr(registry, "graph", lambda of, v: b"no graph" if v.version == 2 else graph(of, v))
    found = compared(settings, version)
    assert found.outcome is Outcome.INCOMPARABLE
    assert "champion 2 can no longer be loaded (" in found.reason


def compared(settings: FarmSettings, version: registry.ModelVersion) -> Verdict:
    """A comparison with the champion as if it were the first."""
    return judge(settings, replace(version, tags={k: v for k, v in version.tags.items() if k != BASIS}))


def test_certificate_is_logged(settings: FarmSettings, training: Training) -> None:
    """Every kind of candidate is proved on the recipe's rows, gaps and rows at branches among them, and it says so."""
    for algorithm in training.algorithms:
        run_id = fitted(settings, training, algorithm)
        proved = prove(settings, NAME, run_id)
        logged = msgspec.json.decode(registry.run_artifact(settings, run_id, PARITY), type=Certificate)
        assert logged == proved.certificate
        assert logged.passed
        assert logged.rows == 2000
        assert logged.rows_with_gaps > 300
        assert logged.rows_alone == 1000
        assert logged.rows_at_branches == (0 if algorithm == "ridge" else 500)
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
