"""Refresh: keep the signatures of the release repository from expiring, and say which ones only a person can renew."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from prefect import task
from pydantic import Field

from fieldloop.stores import releases
from fieldloop.stores.releases import Refreshed
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import OFFLINE

TIMEOUT_S: Final = 900

WarnDays = Annotated[int, Field(ge=1, le=3650)]


@task(name="refresh signatures", retries=3, retry_delay_seconds=60, timeout_seconds=TIMEOUT_S)
def refresh_signatures() -> Refreshed:
    """Sign the online roles anew where they need it."""
    return releases.refresh(Settings(), datetime.now(UTC))


def rows(refreshed: Refreshed, now: datetime, within: timedelta) -> list[dict[str, str]]:
    """Return a row a role, for a table artifact."""
    states = {
        **dict.fromkeys(refreshed.expires, "good"),
        **dict.fromkeys(refreshed.renewed, "signed anew"),
        **dict.fromkeys(refreshed.expiring(now, within), "EXPIRES SOON: fieldloop keys renew"),
    }
    return [
        {
            "role": role,
            "key": "offline" if role in OFFLINE else "online",
            "expires": f"{at:%Y-%m-%d %H:%M} UTC",
            "state": states[role],
        }
        for role, at in refreshed.expires.items()
    ]
