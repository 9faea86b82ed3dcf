"""Deploy: a registered version goes to edge targets as a signed release, in waves, each behind a gate."""

import time
from typing import Annotated, Any

from prefect import flow
from prefect.events import emit_event
from prefect.states import Cancelled
from pydantic import Field

from fieldloop.domain.errors import OvertakenError
from fieldloop.domain.recipe import Name
from fieldloop.domain.rollout.plan import LONGEST_S, Plan
from fieldloop.stores.settings import Settings
from tasks.deploy import DeployResult, plan_of, release_version
from tasks.rollback import withdraw
from tasks.rollout import roll_out, summarize


def stop_asking(flow: Any, flow_run: Any, state: Any) -> None:
    """Leave no order of a cancelled run behind: what is not proved goes back to what it ran before."""
    withdraw(Settings(), flow_run.id)


@flow(name="deploy", timeout_seconds=10 * LONGEST_S, validate_parameters=True, on_cancellation=[stop_asking])
def deploy(
    recipe: Name = "turbine-power",
    version: Annotated[str, Field(pattern=r"^(champion|challenger|[1-9][0-9]*)$")] = "champion",
    labels: Annotated[list[str] | None, Field(max_length=20)] = None,
    plan: Plan | None = None,
) -> DeployResult:
    """Release a version and roll it out: wave by wave, each behind its gate; back where a gate is breached.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        version: Version of the registered model, `champion`, `challenger`, or its number.
        labels: Only targets with all these labels, each `key=value`; all where empty.
        plan: Waves, gates, and what happens at a breach; the recipe's where left out.
    """
    began = time.monotonic()
    released = release_version(recipe, version)
    try:
        rolled = roll_out(released, labels or [], plan or plan_of(recipe))
    except OvertakenError as exc:
        return Cancelled(message=str(exc))  # type: ignore[return-value] # Prefect takes it for the state of the run
    result = summarize(recipe, released, rolled, time.monotonic() - began)
    emit_event(
        event="fieldloop.release.proved",
        resource={"prefect.resource.id": f"fieldloop.release.{released.digest}"},
        payload={"model": released.model, "version": released.version, "targets": result.targets},
    )
    return result
