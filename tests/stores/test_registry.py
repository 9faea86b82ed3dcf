"""The registry against a real MLflow server."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fieldloop.domain.errors import StoreError
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

MODEL = "registry-test"


def logged(settings: Settings) -> tuple[str, bytes]:
    """A run with a graph, and the graph's bytes."""
    import mlflow
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("window", "prediction")]
    graph = helper.make_graph([helper.make_node("Neg", ["window"], ["prediction"])], "negate", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    specs = [Schema([TensorSpec(np.dtype(np.float32), (-1, 1), end.name)]) for end in ends]
    client = registry.client(settings)
    experiment = client.get_experiment_by_name(MODEL)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(MODEL)
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "{}", "release/window.json")
    mlflow.set_tracking_uri(settings.mlflow_endpoint)
    with mlflow.start_run(run_id=run_id):
        mlflow.onnx.log_model(
            model,
            name=registry.GRAPH,
            signature=ModelSignature(*specs),
            pip_requirements=["onnxruntime"],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
    return run_id, model.SerializeToString()


def test_register_is_idempotent(platform: Settings) -> None:
    """A run has one version however often it is registered; another run has the next."""
    first, second = logged(platform)[0], logged(platform)[0]
    version = registry.register(platform, MODEL, first, {"a": "1"})
    assert registry.register(platform, MODEL, first, {"a": "2"}).version == version.version
    assert registry.version(platform, MODEL, version.version).tags["a"] == "2"
    assert registry.register(platform, MODEL, second, {}).version == version.version + 1


def test_aliases(platform: Settings) -> None:
    """An alias points to one version, moves, and can be taken away twice."""
    versions = [registry.register(platform, MODEL, logged(platform)[0], {}) for _ in range(2)]
    for version in versions:
        registry.point(platform, "champion", version)
    found = registry.version(platform, MODEL, "champion")
    assert (found.version, found.aliases) == (versions[1].version, ("champion",))
    for _ in range(2):
        registry.remove(platform, "champion", MODEL)
    assert registry.find(platform, MODEL, "champion") is None


def test_graph_and_artifact(platform: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run logged comes back, by bytes, and nothing is left in the working folder."""
    monkeypatch.chdir(tmp_path)
    run_id, graph = logged(platform)
    version = registry.register(platform, MODEL, run_id, {})
    assert onnx.load_from_string(registry.graph(platform, version)) == onnx.load_from_string(graph)
    assert registry.artifact(platform, version, "release/window.json") == b"{}"
    assert not list(tmp_path.iterdir())


def test_addresses_for_people(platform: Settings) -> None:
    """Pages of runs and versions are those of the MLflow UI."""
    run_id, _ = logged(platform)
    version = registry.register(platform, MODEL, run_id, {})
    number = version.version
    assert registry.run_url(platform, "1", run_id) == f"{platform.mlflow_endpoint}/#/experiments/1/runs/{run_id}"
    assert registry.version_url(platform, version) == f"{platform.mlflow_endpoint}/#/models/{MODEL}/versions/{number}"


def test_what_is_not_there(platform: Settings) -> None:
    """A missing model, version, alias, run, graph or file is named, with the remedy."""
    with pytest.raises(StoreError, match="run the flows `train` and `register` first"):
        registry.version(platform, "no-such-model", "champion")
    for which in (10_000, "challenger"):
        with pytest.raises(StoreError, match=rf"a version '?{which}'? in MLflow .*the newest are \d"):
            registry.version(platform, MODEL, which)
    client = registry.client(platform)
    run_id = client.create_run("0").info.run_id
    with pytest.raises(StoreError, match="expected a model `graph`, got none"):
        registry.register(platform, MODEL, run_id, {})
    with pytest.raises(StoreError, match=r"expected artifact .*release/window.json"):
        registry.run_artifact(platform, run_id, "release/window.json")
    with pytest.raises(StoreError, match="no run"):
        registry.run_tags(platform, "0" * 32)
