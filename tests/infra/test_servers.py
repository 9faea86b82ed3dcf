"""Prefect as the platform prepares it."""

import datetime
import time
import uuid

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
)
from prefect.client.schemas.filters import FlowRunFilterStateType as StateFilter
from prefect.client.schemas.objects import StateType
from prefect.events import Event
from prefect.states import Pending

from fieldloop.cli import runs
from fieldloop.stores.settings import Settings
from infra.local import servers


def test_a_run_that_was_cut_off_does_not_block_the_next(platform: Settings) -> None:
    """A run that was pending when the platform stopped holds its deployment's only slot until the next start."""
    with SyncPrefectClient(api=platform.prefect_api) as client:
        deployment = client.read_deployment_by_name("monitor/monitor")
        cut_off = client.create_flow_run_from_deployment(deployment.id, state=Pending())
        servers.prepare_prefect(platform, datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1))
        state = client.read_flow_run(cut_off.id).state
    assert state is not None
    assert state.type is StateType.CRASHED
    assert state.message == "The platform was stopped while it ran."
    assert runs.run(platform, "monitor/monitor", {}, lambda _stage: None).stages[0].state == "COMPLETED"


def test_the_loop_is_scheduled(platform: Settings) -> None:
    """Prefect's scheduler has entered runs of *lifecycle* for the Mondays to come, at 03:00 UTC."""
    now = datetime.datetime.now(datetime.UTC)
    deadline = now + datetime.timedelta(seconds=90)
    scheduled = FlowRunFilter(
        state=FlowRunFilterState(type=StateFilter(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(after_=now + datetime.timedelta(minutes=5)),
    )
    with SyncPrefectClient(api=platform.prefect_api) as client:
        lifecycle = client.read_deployment_by_name("lifecycle/lifecycle").id
        while True:
            found = [run for run in client.read_flow_runs(flow_run_filter=scheduled) if run.deployment_id == lifecycle]
            if found or datetime.datetime.now(datetime.UTC) > deadline:
                break
    starts = [run.expected_start_time for run in found]
    assert starts
    assert {(start.weekday(), start.hour, start.minute) for start in starts if start} == {(0, 3, 0)}


def test_validation_can_run_on_what_has_landed(platform: Settings) -> None:
    """It is deployed switched off; switched on, the event of a commit starts a run."""
    with SyncPrefectClient(api=platform.prefect_api) as client:
        validate = client.read_deployment_by_name("validate/validate").id
        (found,) = client._client.get(f"/automations/related-to/prefect.deployment.{validate}").json()
        assert (found["enabled"], found["actions"][0]["deployment_id"]) == (False, str(validate))
        client._client.patch(f"/automations/{found['id']}", json={"enabled": True}).raise_for_status()
        try:
            assert _run_on_landing(client, validate)
        finally:
            client._client.patch(f"/automations/{found['id']}", json={"enabled": False}).raise_for_status()


def _run_on_landing(client: SyncPrefectClient, deployment: uuid.UUID) -> bool:
    """Tell that readings have landed until a run of the deployment is there, or a minute has passed."""
    before, deadline = _runs(client, deployment), time.monotonic() + 60
    while _runs(client, deployment) == before and time.monotonic() < deadline:
        event = Event(event="fieldloop.readings.landed", resource={"prefect.resource.id": "fieldloop.table.readings"})
        client._client.post("/events", json=[event.model_dump(mode="json")]).raise_for_status()
        time.sleep(2)  # the server learns of an automation that was switched on a moment later
    return _runs(client, deployment) > before


def _runs(client: SyncPrefectClient, deployment: uuid.UUID) -> int:
    """Count the deployment's runs."""
    return len(client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))))
