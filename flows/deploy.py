"""Deploy: a registered version goes to edge targets as a signed release; a target counts only with its proof of run."""

import time
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from pydantic import Field

from fieldloop.domain.recipe import Name
from tasks.deploy import (
    LONGEST_DEADLINE_S,
    DeployResult,
    ask_targets,
    await_proofs,
    describe,
    release_version,
    require_all_proved,
    select_targets,
    summarize,
    version_url,
)


@flow(name="deploy", timeout_seconds=LONGEST_DEADLINE_S + 3600, validate_parameters=True)
def deploy(
    recipe: Name = "turbine-power",
    version: Annotated[str, Field(pattern=r"^(champion|challenger|[1-9][0-9]*)$")] = "champion",
    labels: Annotated[list[str] | None, Field(max_length=20)] = None,
    deadline_seconds: Annotated[int, Field(ge=1, le=LONGEST_DEADLINE_S)] = 120,
) -> DeployResult:
    """Release a version, ask the targets to run it, and wait for their proofs.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        version: Version of the registered model, `champion`, `challenger`, or its number.
        labels: Only targets with all these labels, each `key=value`; all where empty.
        deadline_seconds: A target that is not proved after so many seconds has failed.
    """
    released = release_version(recipe, version)
    targets = select_targets(released, labels or [])
    began = time.monotonic()
    desired = ask_targets(released, targets)
    standings = await_proofs(released, desired, targets, deadline_seconds)
    seconds = time.monotonic() - began
    table = describe(released, standings, seconds, version_url(released))
    create_markdown_artifact(table, key="deploy", description=f"Where each target of {recipe} stands")
    require_all_proved(standings)
    result = summarize(recipe, released, standings, seconds)
    emit_event(
        event="fieldloop.release.proved",
        resource={"prefect.resource.id": f"fieldloop.release.{released.digest}"},
        payload={"model": released.model, "version": released.version, "targets": result.targets},
    )
    return result
