"""Prefect as the platform prepares it."""

import datetime

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterExpectedStartTime, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateFilter
from prefect.client.schemas.objects import StateType
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
