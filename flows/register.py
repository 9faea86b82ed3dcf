"""Register: a trained run becomes a version if its graph is proved, and the champion if it is better."""

from typing import Annotated
from uuid import NAMESPACE_URL, uuid5

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from pydantic import Field

from fieldloop.domain.recipe import Name
from tasks.approval import LONGEST_S, approve
from tasks.register import (
    RegisterResult,
    challenge_champion,
    describe,
    prove_parity,
    register_version,
    settle_champion,
)


@flow(name="register", timeout_seconds=7200 + LONGEST_S, validate_parameters=True)
def register(
    recipe: Name = "turbine-power",
    run_id: Annotated[str | None, Field(pattern=r"^[0-9a-f]{32}$")] = None,
) -> RegisterResult:
    """Prove parity, register the version as challenger, and promote it if it beats the champion and a person agrees.

    Args:
        recipe: Name of a recipe, a file of `recipes/` without its ending.
        run_id: MLflow run of a candidate; the best of the newest training where empty.
    """
    proved = prove_parity(recipe, run_id)
    version = register_version(proved)
    verdict = approve(recipe, version, challenge_champion(proved, version))
    result = settle_champion(proved, version, verdict)
    create_markdown_artifact(describe(result), key="register", description="Parity, and champion against challenger")
    emit_event(
        event="fieldloop.model.registered",
        resource={"prefect.resource.id": f"fieldloop.model.{result.model}"},
        payload={"version": result.version, "alias": result.verdict.alias, "promoted": result.verdict.promoted},
        id=uuid5(NAMESPACE_URL, f"{result.url} {verdict.basis} {verdict.outcome}"),  # once, however often it is run
    )
    return result
