"""Signatures are renewed in time, on a real store and broker, under a clock that the test turns."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from prefect.artifacts import Artifact
from prefect.client.schemas.objects import Artifact as Shown
from prefect.settings import PREFECT_API_URL, temporary_settings
from tuf.api.metadata import Metadata

from fieldloop.domain.errors import StoreError
from fieldloop.stores import broker, mirror, objects, releases
from fieldloop.stores.settings import Settings
from fieldloop.stores.trust import LIFETIME
from flows.refresh import refresh
from tasks.refresh import rows
from tests.edge.targets import make_release

TIMESTAMP = "metadata/timestamp.json"
WARN = timedelta(days=60)
RENEW = "EXPIRES SOON: fieldloop keys renew"


def test_signatures_are_renewed_in_time_and_only_then(data_plane: Settings) -> None:
    """Nothing before there is a release, nothing while they are fresh, then online roles alone; repeated, nothing."""
    now = datetime.now(UTC)
    assert releases.refresh(data_plane, now) == releases.Refreshed((), {})
    releases.publish(data_plane, make_release(model="refresh"))
    first = releases.refresh(data_plane, now)
    assert first.renewed == ()
    later = now + timedelta(days=LIFETIME["timestamp"] / 2 + 0.5)
    assert releases.refresh(data_plane, later).renewed == ("timestamp",)
    again = releases.refresh(data_plane, later)
    assert again.renewed == ()
    much_later = now + timedelta(days=LIFETIME["snapshot"] / 2 + 0.5)
    last = releases.refresh(data_plane, much_later)
    assert last.renewed == ("snapshot", "timestamp")
    left = {role: round((at - much_later) / timedelta(days=1)) for role, at in last.expires.items()}
    assert (left["snapshot"], left["timestamp"]) == (LIFETIME["snapshot"], LIFETIME["timestamp"])
    assert {role: last.expires[role] for role in ("root", "targets")} == {
        role: first.expires[role] for role in ("root", "targets")
    }
    assert _mirrored(data_plane) == objects.get(objects.client(data_plane, "releases"), "releases", TIMESTAMP)


def test_a_refresh_killed_before_the_mirror_is_finished_by_the_next(
    data_plane: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was signed and not mirrored is mirrored then, without another version."""
    releases.publish(data_plane, make_release(model="refresh"))
    later = datetime.now(UTC) + timedelta(days=30)

    async def killed(*_: object) -> None:
        raise StoreError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(mirror, "copy", killed)
        with pytest.raises(StoreError, match="killed"):
            releases.refresh(data_plane, later)
    signed = objects.get(objects.client(data_plane, "releases"), "releases", TIMESTAMP)
    assert _mirrored(data_plane) != signed
    assert releases.refresh(data_plane, later).renewed == ()
    assert _mirrored(data_plane) == signed
    assert Metadata.from_bytes(signed).signed.expires > later


def test_offline_roles_that_expire_soon_are_told(data_plane: Settings) -> None:
    """Root and targets near their end, and no sooner; the online roles never, as they are renewed."""
    releases.publish(data_plane, make_release(model="refresh"))
    now = datetime.now(UTC)
    refreshed = releases.refresh(data_plane, now)
    assert refreshed.expiring(now, WARN) == {}
    assert {row["state"] for row in rows(refreshed, now, WARN)} == {"good"}
    late = now + timedelta(days=LIFETIME["targets"] - 59)
    assert set(refreshed.expiring(late, WARN)) == {"root", "targets"}
    told = {row["role"]: row["state"] for row in rows(refreshed, late, WARN)}
    assert (told["root"], told["targets"], told["timestamp"]) == (RENEW, RENEW, "good")


def test_the_flow_shows_when_each_role_expires(platform_environment: Settings) -> None:
    """As its deployment runs it: a row a role, the offline ones marked where they are within the warning."""
    releases.publish(platform_environment, make_release(model="refresh-flow"))
    with temporary_settings({PREFECT_API_URL: platform_environment.prefect_api}):
        refresh(warn_days=400)
        artifact = Artifact.get("refresh")
    assert isinstance(artifact, Shown)
    states = {row["role"]: row["state"] for row in json.loads(str(artifact.data))}
    online = ("releases", "snapshot", "timestamp")
    assert states == {"root": RENEW, "targets": RENEW, **dict.fromkeys(online, "good")}


def _mirrored(settings: Settings) -> bytes | None:
    async def read() -> bytes | None:
        async with broker.platform(settings) as (_, js):
            return (await js.get_msg("KV_releases", subject=f"$KV.releases.{TIMESTAMP}.0", direct=True)).data

    return asyncio.run(read())
