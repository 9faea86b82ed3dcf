"""Acquire: drain the devices' messages from the broker into the lake, exactly once."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from pydantic import Field

from tasks.acquire import Acquired, describe, drain_readings


@flow(name="acquire", timeout_seconds=7200, validate_parameters=True)
def acquire(
    quiet_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=600,
            description="Go on until no message has come for so many seconds; 0 stops at what is there at the start.",
        ),
    ] = 0,
) -> Acquired:
    """Drain stream `readings` into the tables `readings` and `quarantine`."""
    acquired = drain_readings(quiet_seconds)
    create_markdown_artifact(describe(acquired), key="acquire", description="What the last acquisition brought in")
    if acquired.readings:
        emit_event(
            event="fieldloop.readings.landed",
            resource={"prefect.resource.id": "fieldloop.table.readings"},
            payload={
                "table_version": acquired.table_version,
                "devices": acquired.devices,
                "rows": acquired.readings,
                "first": str(acquired.first),
                "last": str(acquired.last),
            },
        )
    return acquired
