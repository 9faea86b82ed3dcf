"""Deployment with the real registry, repository and broker, to agents that are real processes."""

from collections.abc import Iterator

import msgspec
import numpy as np
import onnx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from fieldloop.domain.errors import StoreError
from fieldloop.domain.release import decode_canary
from fieldloop.domain.rollout.plan import Plan
from fieldloop.stores import fleet, registry
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from flows.deploy import deploy
from tasks.deploy import build, release
from tests.edge.targets import PROFILE, SPEC, Gateway, enrol, make_release

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

MODEL = "toy-deploy"


@pytest.fixture(scope="module")
def version(platform: Settings) -> registry.ModelVersion:
    """A registered champion with all that a release needs."""
    return _register(platform, bias=1.0)


@pytest.fixture(scope="module")
def gateways(platform: Settings) -> Iterator[tuple[Gateway, ...]]:
    """Two enrolled targets, north and south, with their agents running."""
    made = tuple(enrol(platform, name) for name in ("deploy-north", "deploy-south"))
    targets = [Target(g.target, (g.device,), (f"site={g.target.removeprefix('deploy-')}", "plant=toy")) for g in made]
    fleet.add_devices(Lake(platform), [gateway.device for gateway in made], "toy")
    fleet.add_targets(platform, Lake(platform), targets)
    for gateway in made:
        gateway.start()
    yield made
    for gateway in made:
        gateway.stop()


def test_release_is_built_from_what_was_registered(platform: Settings, version: registry.ModelVersion) -> None:
    """Window, profiles, target, tolerance and lineage come from the version; outputs from the edge's own runtime."""
    built = build(platform, MODEL, version)
    manifest = built.open(built.digest)
    assert (manifest.window, manifest.profiles) == (SPEC, {"toy": PROFILE})
    assert (manifest.target, manifest.unit, manifest.tolerance) == ("power", "kW", 0.25)
    assert (manifest.budget.memory_bytes, manifest.budget.latency_s, manifest.alerts) == (700_000_000, None, None)
    assert manifest.lineage == {"windows": "lake/windows@3"}
    canary = decode_canary(built.canary)
    assert canary.outputs.shape == (len(canary.inputs), 1)
    np.testing.assert_allclose(canary.outputs[0, 0], canary.inputs[0].mean() + 1, rtol=1e-6)


def test_the_same_version_again_is_the_same_release(platform: Settings, version: registry.ModelVersion) -> None:
    """Building depends on nothing but the version: nothing is published twice."""
    first, second = release(platform, MODEL, "champion"), release(platform, MODEL, str(version.version))
    assert first.digest == second.digest
    assert not second.new


def test_a_version_that_is_not_there_is_named(platform: Settings) -> None:
    """The error says which model and version."""
    with pytest.raises(StoreError, match="no-such-model"):
        release(platform, "no-such-model", "champion")


def test_the_flow_ends_when_every_target_has_proved(
    platform_environment: Settings, version: registry.ModelVersion, gateways: tuple[Gateway, ...]
) -> None:
    """Run twice: the second time the agents change nothing."""
    with temporary_settings({PREFECT_API_URL: platform_environment.prefect_api}):
        result = deploy(MODEL, labels=["plant=toy"], plan=Plan())
        again = deploy(MODEL, labels=["plant=toy"], plan=Plan())
    assert (result.targets, result.proved, result.exact) == (2, 2, 2)
    assert (again.proved, again.release, again.new) == (2, result.release, False)
    for gateway in gateways:
        assert gateway.log.count("is desired") == 1


def _register(settings: Settings, bias: float) -> registry.ModelVersion:
    """Log a run as training does, register it and make it champion."""
    import mlflow
    import mlflow.onnx

    toy = make_release(bias=bias)
    files = {
        "window": msgspec.json.encode(SPEC),
        "profiles": msgspec.json.encode({"toy": PROFILE}),
        "features": b'["mean"]',
        "target": b'{"metric": "power", "unit": "kW", "tolerance": 0.25, "budget": {"memory_bytes": 700000000}}',
        "canary": msgspec.json.encode({"inputs": decode_canary(toy.canary).inputs.tolist()}),
    }
    client = registry.client(settings)
    experiment = client.create_experiment(MODEL)
    run_id = client.create_run(experiment).info.run_id
    for name, data in files.items():
        client.log_text(run_id, data.decode(), f"release/{name}.json")
    mlflow.set_tracking_uri(settings.mlflow_endpoint)
    with mlflow.start_run(run_id=run_id):
        mlflow.onnx.log_model(
            onnx.load_from_string(toy.graph),
            name=registry.GRAPH,
            pip_requirements=["onnxruntime"],
            save_as_external_data=False,
        )
    registered = registry.register(settings, MODEL, run_id, {"lineage.windows": "lake/windows@3"})
    registry.point(settings, "champion", registered)
    return registered
