"""What flows tell by event, and leave as artifacts, of what their tasks found: on the real Prefect."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from fieldloop.stores.drain import Fill
from fieldloop.stores.settings import Settings
from fieldloop.stores.standing import By, Standing, State
from flows import watch as stage
from flows.maintain import maintain
from tasks.maintain import TABLES
from tasks.readmission import Settled, announce
from tasks.watch import Silence, Watched

DEADLINE_S = 60
NOW = datetime.now(UTC)
FOUND = Watched(
    Fill(3, 0.01, 0.75, NOW),
    True,
    (Silence("mute-1", None, timedelta(hours=1), True), Silence("mute-2", NOW, timedelta(hours=1), False)),
)
LIAR = Standing("liar-1", State.SUSPENDED, "power", "as if sent in kW, not W", 7, "", By.WATCH, False, NOW, 1)


@pytest.fixture
def prefect(platform_environment: Settings) -> Iterator[Settings]:
    """The platform, as a flow that runs in this process finds it."""
    with temporary_settings({PREFECT_API_URL: platform_environment.prefect_api}):
        yield platform_environment


def test_a_filling_stream_and_new_silence_are_told(prefect: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was silent before is told of no more; what automations ask for is in the payload."""
    monkeypatch.setattr(stage, "look", lambda cadences, share: FOUND)
    assert stage.watch() == FOUND
    assert told(prefect, "fieldloop.stream.filling", {"messages": 3, "bytes_share": 0.01, "age_share": 0.75})
    silent = {"device": "mute-1", "last": "None", "allowed_s": 3600.0}
    assert told(prefect, "fieldloop.device.silent", silent)
    assert "mute-2" not in {each.get("device") for each in payloads(prefect, "fieldloop.device.silent")}


def test_a_device_that_was_set_aside_is_told(prefect: Settings) -> None:
    """With the metric that shows it and the suspected change."""
    announce(Settled((LIAR,), (), (), 0))
    suspected = {"device": "liar-1", "metric": "power", "suspected": "as if sent in kW, not W"}
    assert told(prefect, "fieldloop.device.suspended", suspected)


def test_upkeep_reports_the_sizes_of_all_tables(prefect: Settings) -> None:
    """The flow goes through every table, and leaves sizes before and after for a person."""
    done = maintain()
    assert tuple(each.table for each in done[: len(TABLES)]) == TABLES
    with SyncPrefectClient(api=prefect.prefect_api) as client:
        (left,) = [artifact for artifact in client.read_latest_artifacts() if artifact.key == "maintain"]
    assert all(f'"table": "{table}"' in str(left.data) for table in TABLES)
    assert "old files deleted" in str(left.data)


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
