"""The flow *watch* tells of what its look has found, on the real Prefect."""

import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from fieldloop.stores.drain import Fill
from fieldloop.stores.settings import Settings
from flows import watch as stage
from tasks.watch import Silence, Watched

DEADLINE_S = 60
NOW = datetime.now(UTC)
FOUND = Watched(
    Fill(3, 0.01, 0.75, NOW),
    True,
    (Silence("mute-1", None, timedelta(hours=1), True), Silence("mute-2", NOW, timedelta(hours=1), False)),
)


def test_a_filling_stream_and_new_silence_are_told_by_event(
    platform_environment: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that was silent before is told of no more; what automations ask for is in the payload."""
    monkeypatch.setattr(stage, "look", lambda cadences, share: FOUND)
    with temporary_settings({PREFECT_API_URL: platform_environment.prefect_api}):
        assert stage.watch() == FOUND
    filling = {"messages": 3, "bytes_share": 0.01, "age_share": 0.75}
    silent = {"device": "mute-1", "last": "None", "allowed_s": 3600.0}
    assert told(platform_environment, "fieldloop.stream.filling", filling)
    assert told(platform_environment, "fieldloop.device.silent", silent)
    assert "mute-2" not in {each.get("device") for each in payloads(platform_environment, "fieldloop.device.silent")}


def told(settings: Settings, event: str, payload: dict[str, object]) -> bool:
    """Wait for an event with this payload, for a minute."""
    deadline = time.monotonic() + DEADLINE_S
    while payload not in payloads(settings, event) and time.monotonic() < deadline:
        time.sleep(0.2)
    return payload in payloads(settings, event)


def payloads(settings: Settings, event: str) -> list[dict[str, object]]:
    """All payloads that the server has of an event."""
    answer = httpx.post(f"{settings.prefect_api}/events/filter", json={"filter": {"event": {"name": [event]}}})
    return [each["payload"] for each in answer.raise_for_status().json()["events"]]
