"""Acquire: drain the devices' messages from the broker into the lake, exactly once."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from tasks.acquire import Acquired, QuietSeconds, describe, drain_readings


@flow(name="acquire", timeout_seconds=7200, validate_parameters=True)
def acquire(
    quiet_seconds: QuietSeconds = 0,
) -> Acquired:
    """Drain stream `readings` into the tables `readings` and `quarantine`.

    Args:
        quiet_seconds: Go on until no message has come for so many seconds; 0 stops at what is there at the start.
    """
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
