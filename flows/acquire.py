"""Acquire: drain the devices' messages from the broker into the lake, exactly once."""

from datetime import UTC, datetime

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from tasks.acquire import Acquired, PartitionNumber, QuietSeconds, Share, describe, drain_readings, landed_event
from tasks.readmission import announce, describe_settled, settle_doubts


@flow(name="acquire", timeout_seconds=7200, validate_parameters=True)
def acquire(
    quiet_seconds: QuietSeconds = 0,
    partition: PartitionNumber = 1,
    partitions: PartitionNumber = 1,
) -> Acquired:
    """Drain stream `readings` into the tables `readings` and `quarantine`.

    Args:
        quiet_seconds: Go on until no message has come for so many seconds; 0 stops at what is there at the start.
        partition: Which part of the devices this run drains, from 1; others are left to runs on other workers.
        partitions: Of how many parts. 1 drains everything, on all cores of one machine.
    """
    began = datetime.now(UTC)
    share = Share(partition, partitions)
    acquired = drain_readings(quiet_seconds, share)
    settled = settle_doubts(began, share)
    report = f"{describe(acquired)}\n{describe_settled(settled)}"
    create_markdown_artifact(report, key="acquire", description="What the last acquisition brought in")
    if acquired.readings:
        emit_event(
            event="fieldloop.readings.landed",
            resource={"prefect.resource.id": "fieldloop.table.readings"},
            payload=landed_event(acquired),
        )
    announce(settled)
    return acquired
