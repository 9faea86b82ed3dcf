"""Watch: report how full the devices' stream is, and which devices are silent; tell by event what is new."""

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from tasks.watch import Cadences, FillShare, Watched, look, rows


@flow(name="watch", timeout_seconds=900, validate_parameters=True)
def watch(
    cadences: Cadences = 6,
    share: FillShare = 0.5,
) -> Watched:
    """Look at stream `readings` and at every device.

    Args:
        cadences: A device is silent when nothing of it has come for so many of its profile's cadences.
        share: The stream is filling when what is not in the lake yet takes so much of its bytes or of its age.
    """
    watched = look(cadences, share)
    create_table_artifact(rows(watched), key="watch", description="The stream's fill level and the silent devices")
    if watched.filling:
        emit_event(
            event="fieldloop.stream.filling",
            resource={"prefect.resource.id": "fieldloop.stream.readings"},
            payload={
                "messages": watched.fill.messages,
                "bytes_share": watched.fill.bytes_share,
                "age_share": watched.fill.age_share,
            },
        )
    for silence in watched.silent:
        if silence.new:
            emit_event(
                event="fieldloop.device.silent",
                resource={"prefect.resource.id": f"fieldloop.device.{silence.device}"},
                payload={
                    "device": silence.device,
                    "last": str(silence.last),
                    "allowed_s": silence.allowed.total_seconds(),
                },
            )
    return watched
