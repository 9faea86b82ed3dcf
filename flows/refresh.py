"""Refresh: sign the release repository's online roles anew; tell by event when an offline role expires soon."""

from datetime import UTC, datetime, timedelta

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

from fieldloop.stores.releases import Refreshed
from tasks.refresh import WarnDays, refresh_signatures, rows


@flow(name="refresh", timeout_seconds=3600, validate_parameters=True)
def refresh(
    warn_days: WarnDays = 60,
) -> Refreshed:
    """Keep agents able to fetch: they refuse a repository whose signatures have expired.

    Args:
        warn_days: An offline role (root, targets) that expires within so many days is told by event
            `fieldloop.releases.expiring`.
    """
    refreshed = refresh_signatures()
    now, within = datetime.now(UTC), timedelta(days=warn_days)
    create_table_artifact(rows(refreshed, now, within), key="refresh", description="When the releases' roles expire")
    for role, at in refreshed.expiring(now, within).items():
        emit_event(
            event="fieldloop.releases.expiring",
            resource={"prefect.resource.id": f"fieldloop.releases.{role}"},
            payload={"role": role, "expires": at.isoformat()},
        )
    return refreshed
