"""Drift from training to retraining: the real registry, reports on the real broker, the real Prefect's trigger."""

import asyncio
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import polars as pl
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from fieldloop.domain.drift import PREDICTION, Distributions, Verdict
from fieldloop.domain.release import Proof
from fieldloop.domain.rollout import Reported, Running, Served
from fieldloop.domain.sketch import Sketch
from fieldloop.stores import broker, fleet, registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local.servers import POOL
from tasks.drift import Comparison, announce, compare, describe, figures
from tasks.register import enter, prove
from tasks.runs import REFERENCE
from tasks.train import begin, train_candidate
from tests.tasks.farm import DEVICES, SPLIT, FarmSettings, farm, write_tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-drift"
TARGETS = ("drift-north", "drift-south")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def settings(platform: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmSettings]:
    """The farm's settings, with two targets that serve no device of any profile."""
    settings = farm(platform, tmp_path_factory.mktemp("farm"), NAME)
    lake = Lake(settings)
    fleet.add_targets(settings, lake, [fleet.Target(name, (f"{name}-device",)) for name in TARGETS])
    yield settings
    fleet.remove_targets(settings, lake, TARGETS)


@pytest.fixture(scope="module")
def version(settings: FarmSettings) -> registry.ModelVersion:
    """A version of the farm's recipe, trained and registered."""
    training = begin(settings, NAME, ["ridge"], *write_tables(settings, NAME), 7)
    run_id = train_candidate(settings, training, "ridge", 7).run_id
    return registry.version(settings, NAME, enter(settings, prove(settings, NAME, run_id)).version)


@pytest.fixture
def idle(platform: Settings) -> Iterator[SyncPrefectClient]:
    """A client of a Prefect whose worker takes no runs: what the trigger makes stays to be looked at."""
    with (
        SyncPrefectClient(api=platform.prefect_api) as client,
        temporary_settings({PREFECT_API_URL: str(client.api_url)}),
    ):
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
        yield client
        for run in _runs(client):
            client.delete_flow_run(run.id)
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))


def test_training_logs_what_it_learnt_from(settings: FarmSettings, version: registry.ModelVersion) -> None:
    """A channel's newest value in each window that was fitted to, gaps too; predictions on the held-out windows."""
    reference = _reference(settings, version)
    grid, windows = (Lake(settings).scan(f"{table}/{NAME}").collect() for table in ("grid", "windows"))
    used = windows.filter(pl.col("target").is_not_nan(), pl.col("split") != "")
    newest = used.join(grid, left_on=["device", "end_time"], right_on=["device", "step_time"])
    learnt, held_out = newest.filter(pl.col("end_time") < SPLIT), newest.filter(pl.col("end_time") >= SPLIT)
    for metric in ("wind_speed", "pitch_angle", "outdoor_temperature"):
        assert reference.inputs[metric] == Sketch.of(learnt[metric].to_numpy())
    assert reference.inputs["wind_speed"].missing > 0
    assert reference.predictions.count == len(held_out)
    assert set(used["device"]) == set(DEVICES)


def test_reports_are_held_against_the_reference(settings: FarmSettings, version: registry.ModelVersion) -> None:
    """What was learnt from is steady; half as much wind again is not, nor are its predictions."""
    reference = _reference(settings, version)
    _report(settings, version, reference)
    (steady,) = compare(settings, NAME)
    assert (steady.version, steady.targets) == (version.version, 2)
    assert {finding.verdict for finding in steady.findings} == {Verdict.STEADY}
    assert steady.findings[0].values == 2 * (reference.inputs["wind_speed"].with_missing().count)

    wind = np.random.default_rng(3).gamma(4, 3, 3000).astype(np.float32)
    stormy = {**reference.inputs, "wind_speed": Sketch.of(wind)}
    _report(settings, version, Distributions(stormy, Sketch.of(np.minimum(wind**3, 2000))))
    (found,) = compare(settings, NAME)
    assert [f.channel for f in found.findings if f.verdict is Verdict.DRIFTED] == ["wind_speed", PREDICTION]
    assert figures([found]) == {"distributions": 4, "drifted": f"{PREDICTION}, wind_speed", "unusable_reports": 0}
    assert "**2 of 4** distributions have drifted" in describe([found])
    assert "| wind_speed | 6,000 | 0." in describe([found])


def test_a_report_that_cannot_be_used_is_left_out_and_said(
    settings: FarmSettings, version: registry.ModelVersion
) -> None:
    """The other target is held against the reference as ever."""
    _report(settings, version, _reference(settings, version))
    _send(settings, {TARGETS[0]: b'{"target":"drift-north","at_us":0,"runtime":"","inputs":{"w":{"keys":[1]}}}'})
    (found,) = compare(settings, NAME)
    assert (found.targets, figures([found])["unusable_reports"]) == (1, 1)
    assert {finding.verdict for finding in found.findings} == {Verdict.STEADY}
    assert "left out (drift-north: its last report cannot be read: sketch: expected a count" in describe([found])


def test_a_version_without_a_reference_is_said_to_have_none(
    settings: FarmSettings, version: registry.ModelVersion
) -> None:
    """As one that is not registered here."""
    elsewhere = registry.ModelVersion(NAME, 999, version.run_id, (), {}, 0)
    _report(settings, elsewhere, _reference(settings, version))
    (compared,) = compare(settings, NAME)
    assert (compared.version, compared.findings) == (999, ())
    assert "left no reference" in describe([compared])


def test_a_drift_turns_the_loop_for_its_recipe_once(
    settings: FarmSettings, version: registry.ModelVersion, idle: SyncPrefectClient
) -> None:
    """A second event of the recipe makes no second run; another recipe's makes its own."""
    stormy = {"wind_speed": Sketch.of(np.full(3000, 30.0))}
    _report(settings, version, Distributions(stormy, Sketch.of(np.full(3000, 2000.0))))
    (found,) = compare(settings, NAME)
    _await(idle, {NAME}, found)
    announce([found])
    _await(
        idle,
        {NAME, "tiny-other"},
        Comparison("tiny-other", "tiny-other", 1, 1, found.limit, found.retrain, found.findings),
    )
    assert len(_runs(idle)) == 2


def _reference(settings: Settings, version: registry.ModelVersion) -> Distributions:
    return msgspec.json.decode(registry.artifact(settings, version, REFERENCE), type=Distributions)


def _report(settings: Settings, version: registry.ModelVersion, seen: Distributions) -> None:
    """Have both targets report that they run a version and have seen this."""
    running = Running(
        f"digest-{version.version}", version.name, version.version, Proof("", exact=True, max_abs_diff=0.0, passed=True)
    )
    served = Served(running.release, scores=seen.predictions)
    reports = [Reported(target, 0, "", running, served=served, inputs=seen.inputs) for target in TARGETS]
    _send(settings, {report.target: msgspec.json.encode(report) for report in reports})


def _send(settings: Settings, reports: dict[str, bytes]) -> None:
    async def send() -> None:
        async with broker.platform(settings) as (_, js):
            for target, report in reports.items():
                await js.publish(f"$KV.{broker.REPORTED}.{target}", report)

    asyncio.run(send())


def _runs(client: SyncPrefectClient) -> list[FlowRun]:
    """The runs of *lifecycle* that a drift has made."""
    lifecycle = client.read_deployment_by_name("lifecycle/lifecycle").id
    mine = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[lifecycle]))
    found = client.read_flow_runs(flow_run_filter=mine)
    return [run for run in found if str(run.parameters.get("recipe", "")).startswith("tiny-")]


def _await(client: SyncPrefectClient, recipes: set[str], found: Comparison) -> None:
    """Announce a drift until the runs are there: the server may learn of its automation a moment later.

    Each announcement has a sender of its own: one that earlier tests began still talks to their server.
    """
    deadline = time.monotonic() + PATIENCE_S
    while {run.parameters["recipe"] for run in _runs(client)} != recipes:
        assert time.monotonic() < deadline, f"expected runs for {recipes}, got {_runs(client)}"
        EventsWorker.drain_all()
        announce([found])
        time.sleep(2)
