"""Start a deployment's run in Prefect, as a person does in its UI, and follow it to its end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from fieldloop.domain.errors import ServiceError
from fieldloop.stores.settings import Settings

POLL_S: Final = 0.5
LOOK_S: Final = 2.0  # between looks at the stages, each of which costs the server as much as three at the run
REMIND_S: Final = 10.0
ARTIFACT_LIMIT: Final = 200


@dataclass(frozen=True)
class StageRun:
    """One flow run below another.

    Attributes:
        name: the flow's name.
        state: Prefect's state type, for instance `COMPLETED`.
        seconds: run time so far.
        task_seconds: the part of it in which at least one task ran.
    """

    name: str
    state: str
    seconds: float
    task_seconds: float


@dataclass(frozen=True)
class FinishedRun:
    """A run that completed.

    Attributes:
        id: the flow run.
        url: its page.
        wall_s: seconds from the trigger to the end, as the caller saw it.
        stages: the flows that it called, in order; itself where it called none.
    """

    id: UUID
    url: str
    wall_s: float
    stages: tuple[StageRun, ...]

    @property
    def task_seconds(self) -> float:
        """Seconds that all stages together spent in tasks."""
        return sum(stage.task_seconds for stage in self.stages)


def run(
    settings: Settings, deployment: str, parameters: dict[str, Any], say: Callable[[StageRun], None]
) -> FinishedRun:
    """Run a deployment and wait for it.

    Args:
        settings: where Prefect is.
        deployment: `flow/deployment`.
        parameters: of the flow.
        say: is told of each stage as it starts and ends, and every ten seconds of what still runs.

    Raises:
        ServiceError: the run failed, crashed or was cancelled; says where to look.
    """
    from prefect.client.orchestration import SyncPrefectClient

    began = time.monotonic()
    told: set[tuple[str, bool]] = set()
    said = looked = began
    stages: tuple[StageRun, ...] = ()
    with SyncPrefectClient(api=settings.prefect_api) as client:
        found = client.read_deployment_by_name(deployment)
        run_id = client.create_flow_run_from_deployment(found.id, parameters=parameters).id
        url = f"{settings.prefect_ui}/runs/flow-run/{run_id}"
        while True:
            current = client.read_flow_run(run_id)
            state = current.state
            ended = state is not None and state.is_final()
            if ended or not stages or time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                stages = _stages(client, run_id) or (_stage(client, current, deployment.split("/")[0]),)
            for stage in stages:
                done = stage.state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
                if stage.state in ("SCHEDULED", "PENDING") or (stage.name, True) in told:
                    continue
                if (stage.name, done) not in told or time.monotonic() - said >= REMIND_S:
                    told.add((stage.name, done))
                    said = time.monotonic()
                    say(stage)
            if state is not None and ended:
                break
            time.sleep(POLL_S)
    if not state.is_completed():
        raise ServiceError(f"{deployment} ended {state.type.value.lower()}: {state.message or 'no message'}; see {url}")
    return FinishedRun(run_id, url, time.monotonic() - began, stages)


def table(settings: Settings, run: FinishedRun, key: str) -> list[dict[str, Any]]:
    """Return the rows of the table artifact that a run left under a key.

    Raises:
        ServiceError: it left none.
    """
    import json

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

    with SyncPrefectClient(api=settings.prefect_api) as client:
        left = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), key=ArtifactFilterKey(any_=[key])
            ),
            limit=1,
        )
    if not left:
        raise ServiceError(f"the run left no artifact {key!r}; see {run.url}")
    rows: list[dict[str, Any]] = json.loads(str(left[0].data))
    return rows


def _stages(client: Any, run_id: UUID) -> tuple[StageRun, ...]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

    below = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
    )
    below.sort(key=lambda each: each.start_time.timestamp() if each.start_time else float("inf"))
    return tuple(_stage(client, each, client.read_flow(each.flow_id).name) for each in below)


def _stage(client: Any, run: Any, name: str) -> StageRun:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return StageRun(
        name,
        run.state_type.value if run.state_type else "PENDING",
        run.estimated_run_time.total_seconds(),
        _covered([(task.start_time.timestamp(), _ended(task)) for task in tasks if task.start_time]),
    )


def _ended(task: Any) -> float:
    return float(task.end_time.timestamp()) if task.end_time else time.time()


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that lie in at least one span: tasks may run beside one another."""
    seconds, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds
