"""Deployment with the real registry, repository and broker, to agents that are real processes."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import msgspec
import numpy as np
import onnx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, State

from fieldloop.domain.errors import ReleaseError, StoreError
from fieldloop.domain.release import decode_canary
from fieldloop.domain.rollout import NOTHING, Desired
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.rollout.record import Phase, Rollout
from fieldloop.stores import broker, fleet, registry, rollouts
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from flows.deploy import deploy
from tasks.deploy import build, release
from tests.edge.targets import PROFILE, SPEC, Gateway, enrol, make_release, poll
from tests.tasks.farm import TEXT

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

MODEL = "toy-deploy"
WORKER_S = 60.0  # for a worker to start a run, or to end one


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


@pytest.fixture(scope="module")
def still(platform: Settings) -> str:
    """A target whose agent never runs."""
    name = "deploy-still"
    fleet.add_devices(Lake(platform), [f"{name}-device"], "toy")
    fleet.add_targets(platform, Lake(platform), [Target(name, (f"{name}-device",), (f"only={name}",))])
    return name


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


def test_the_flow_takes_each_group_its_own_graph(
    platform_environment: Settings, gateways: tuple[Gateway, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A champion a group, one release, one rollout, a proof by each graph's own canary."""
    (tmp_path / "recipes").mkdir()
    groups = "groups: {label: site, of: {north: {include: ['N*']}, south: {include: ['S*']}}}"
    (tmp_path / "recipes" / "toy-groups.yaml").write_text(TEXT.replace("NAME", "toy-groups") + groups)
    monkeypatch.setattr(Settings, "root", property(lambda _: tmp_path))
    for site, bias in (("north", 1.0), ("south", 20.0)):
        _register(platform_environment, bias, f"toy-groups--{site}")
    with temporary_settings({PREFECT_API_URL: platform_environment.prefect_api}):
        result = deploy("toy-groups", labels=["plant=toy"], plan=Plan())
    assert (result.model, result.version, result.targets, result.proved, result.exact) == ("toy-groups", 1, 2, 2, 2)
    reports = [gateway.report() for gateway in gateways]
    assert len({report.running.proof.output_hash for report in reports if report and report.running}) == 2
    with pytest.raises(ReleaseError, match="numbers of its own"):
        release(platform_environment, "toy-groups", "1")


def test_a_workers_run_that_waits_for_a_person_is_cancelled_by_its_hook(
    platform: Settings, version: registry.ModelVersion, still: str
) -> None:
    """It looks at nothing meanwhile: the worker kills it, and nobody but the hook can take back what was asked."""
    with SyncPrefectClient(api=platform.prefect_api) as client:
        run = _start(client, still, {"on_breach": "ask", "limits": {"deadline_s": 1}})
        _await_rollout(platform, run, lambda rollout: rollout.phase is Phase.ASKING)
        poll(lambda: _state(client, run).is_paused() or None, lambda: str(_state(client, run)))
        client.set_flow_run_state(run, Cancelling())
        _await_rollout(platform, run, lambda rollout: rollout.phase is Phase.CANCELLED)
        _await_cancelled(client, run)
    assert _asked(platform, still) == NOTHING


def _register(settings: Settings, bias: float, model: str = MODEL) -> registry.ModelVersion:
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
    experiment = client.create_experiment(model)
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
    registered = registry.register(settings, model, run_id, {"lineage.windows": "lake/windows@3"})
    registry.point(settings, "champion", registered)
    return registered


def _start(client: SyncPrefectClient, target: str, plan: dict[str, object]) -> UUID:
    """Have the worker run *deploy* to one target."""
    deployment = client.read_deployment_by_name("deploy/deploy").id
    wanted = {"recipe": MODEL, "labels": [f"only={target}"], "plan": plan}
    return client.create_flow_run_from_deployment(deployment, parameters=wanted).id


def _await_rollout(settings: Settings, run: UUID, wanted: Callable[[Rollout], bool]) -> None:
    """Wait until the rollout of a flow run is as wanted."""

    async def mine() -> list[Rollout]:
        async with broker.platform(settings) as (_, js):
            return [head.rollout for head in await rollouts.heads(js) if str(run) in head.rollout.runs]

    poll(lambda: any(map(wanted, asyncio.run(mine()))) or None, lambda: str(asyncio.run(mine())), WORKER_S)


def _await_cancelled(client: SyncPrefectClient, run: UUID) -> None:
    poll(lambda: _state(client, run).is_cancelled() or None, lambda: str(_state(client, run)), WORKER_S)


def _state(client: SyncPrefectClient, run: UUID) -> State:
    state = client.read_flow_run(run).state
    assert state is not None
    return state


def _asked(settings: Settings, target: str) -> str:
    async def read() -> Desired | None:
        async with broker.platform(settings) as (_, js):
            return (await rollouts.held(js, [target]))[target].desired

    order = asyncio.run(read())
    assert order is not None
    return order.release
