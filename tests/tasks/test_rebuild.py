"""A registered version made again: here, by another process under other circumstances, and where it cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from fieldloop.domain.errors import StoreError
from fieldloop.stores import objects, registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.registry import ModelVersion
from tasks import fitting
from tasks import rebuild as rebuilding
from tasks.rebuild import rebuild
from tasks.register import enter, prove
from tasks.train import begin, train_candidate
from tests.tasks.farm import FarmSettings, farm, write_tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-rebuild"
SEED = 7
ELSEWHERE = {"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "3"}
PROGRAM = f"""
import sys
from fieldloop.stores import registry
from tasks.rebuild import rebuild
from tests.tasks.farm import FarmSettings
settings = FarmSettings.model_validate_json(sys.stdin.read())
for version in registry.versions(settings, "{NAME}"):
    print(rebuild(settings, version).graph)
"""


@pytest.fixture(scope="module")
def settings(platform: FarmSettings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm, with settings to search and an anomaly detector's neighbours among the candidates."""
    made = farm(platform, tmp_path_factory.mktemp("farm"), NAME)
    path = made.root / "recipes" / f"{NAME}.yaml"
    searched = "learning_rate: 0.3, search: {depth: {low: 2, high: 5}}}"
    text = path.read_text().replace("learning_rate: 0.3}", searched).replace("  - {algorithm: ridge}\n", "")
    path.write_text(f"{text}search: {{trials: 3}}\n")
    return made


@pytest.fixture(scope="module")
def registered(settings: FarmSettings) -> list[ModelVersion]:
    """A version of each candidate; the tables have newer versions since."""
    training = begin(settings, NAME, [], *write_tables(settings, NAME), SEED)
    runs = [train_candidate(settings, training, algorithm, SEED).run_id for algorithm in training.algorithms]
    made = [enter(settings, prove(settings, NAME, run_id)) for run_id in runs]
    write_tables(settings, NAME, np.zeros(8640, np.float32))
    return made


def test_made_again_bit_for_bit(settings: FarmSettings, registered: list[ModelVersion]) -> None:
    """The winner of a search is fitted again with what was found, at the tables as they were."""
    made = rebuild(settings, registered[0])
    assert made.same
    assert made.difference is None
    assert made.graph == registry.run_tags(settings, registered[0].run_id)["fieldloop.graph"]


def test_made_again_by_another_process(settings: FarmSettings, registered: list[ModelVersion]) -> None:
    """Neither the order of sets nor the number of threads that the environment asks for changes a bit."""
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=settings.model_dump_json(), capture_output=True, text=True, check=True, env={**os.environ, **ELSEWHERE},
    )  # fmt: skip
    expected = {registry.run_tags(settings, version.run_id)["fieldloop.graph"] for version in registered}
    assert set(answer.stdout.split()) == expected


def test_difference_is_placed(
    settings: FarmSettings, registered: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out otherwise is said to, with the first value that differs, and with what is not as it was."""
    real = fitting.fit

    def nudged(*arguments: object) -> fitting.Fitted:
        fitted = real(*arguments)  # type: ignore[arg-type]
        values = next(a for n in fitted.graph.graph.node for a in n.attribute if a.name == "nodes_values")
        values.floats[3] += 1
        return fitted

    monkeypatch.setattr(rebuilding, "fit", nudged)
    monkeypatch.setattr(rebuilding, "packages", lambda: {"numpy": "0.1"})
    made = rebuild(settings, registered[0])
    assert not made.same
    assert made.difference is not None
    assert "TreeEnsembleRegressor" in made.difference
    assert "nodes_values: 1 of" in made.difference
    assert any(line.startswith("numpy was 2.") and line.endswith("is 0.1") for line in made.circumstances)


def test_tables_that_are_gone(settings: FarmSettings, registered: list[ModelVersion]) -> None:
    """Where files of a version were deleted, that is said before anything is fitted."""
    versions = write_tables(settings, NAME)
    training = begin(settings, NAME, ["extra_trees"], *versions, SEED)
    version = enter(settings, prove(settings, NAME, train_candidate(settings, training, "extra_trees", SEED).run_id))
    handle = Lake(settings).open(f"grid/{NAME}", versions[0])
    assert handle is not None
    store = objects.client(settings, "lake")
    for uri in handle.file_uris():
        store.remove_object(bucket_name="lake", object_name=uri.removeprefix("s3://lake/"))
    with pytest.raises(StoreError, match=f"version {versions[0]} of table 'grid/{NAME}' can no longer be read: 1 of"):
        rebuild(settings, version)


def test_changed_model(settings: FarmSettings, registered: list[ModelVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored graph that is not the one that was trained is refused, whatever can be rebuilt."""
    graph = onnx.load_from_string(registry.graph(settings, registered[1]))
    graph.doc_string = "changed"
    monkeypatch.setattr(registry, "graph", lambda *_: graph.SerializeToString())
    with pytest.raises(StoreError, match="the stored model was changed after training"):
        rebuild(settings, registered[1])


def test_references(settings: FarmSettings, registered: list[ModelVersion], tmp_path: Path) -> None:
    """Versions are named as people do; what is not there is answered by what is."""
    registry.point(settings, "champion", registered[0])
    assert registry.named(settings, f"{NAME}/2").version == 2
    assert registry.named(settings, f"models:/{NAME}@champion").version == 1
    with pytest.raises(StoreError, match=f"model {NAME} has no version 99; it has .*1 @champion"):
        registry.named(settings, f"{NAME}/99")
    with pytest.raises(StoreError, match="there is no model 'nothing' in MLflow; there are: "):
        registry.named(settings, "nothing/1")
    with pytest.raises(StoreError, match="expected a version such as turbine-power/3"):
        registry.named(settings, "champion")
