"""Answers to flow runs that wait, on the real Prefect."""

import threading

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.input import keyset_from_paused_state
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Paused, Running

from fieldloop.stores.settings import Settings
from tasks import answers
from tasks.answers import resume
from tasks.approval import Approval

ANSWER = {"choice": "promote", "reason": "it is better"}


@flow(name="waits")
def waiting() -> None:
    """Never run: its states are set from outside."""


@pytest.mark.parametrize(("asks_after_s", "status"), [(0.6, "ACCEPT"), (None, "REJECT")])
def test_an_answer_waits_for_the_question(
    platform: Settings, monkeypatch: pytest.MonkeyPatch, asks_after_s: float | None, status: str
) -> None:
    """A run is paused a moment before Prefect has its form; one that was killed in that moment is refused."""
    if asks_after_s is None:
        monkeypatch.setattr(answers, "FORM_S", 0.5)
    with temporary_settings({PREFECT_API_URL: platform.prefect_api}), SyncPrefectClient(platform.prefect_api) as client:
        run = client.create_flow_run(waiting, state=Running()).id
        state = Paused(timeout_seconds=60, pause_key="asked")
        keys = state.state_details.run_input_keyset = keyset_from_paused_state(state)
        client.set_flow_run_state(run, state, force=True)
        if asks_after_s is not None:
            threading.Timer(asks_after_s, lambda: _save(platform, keys, run)).start()
        result = resume(client, run, ANSWER)
        assert result.status.value == status
        assert client.read_flow_run(run).state.is_paused() == (status == "REJECT")  # type: ignore[union-attr]
        client.delete_flow_run(run)


def _save(platform: Settings, keys: object, run: object) -> None:
    with temporary_settings({PREFECT_API_URL: platform.prefect_api}):
        Approval.save(keys, run)  # type: ignore[arg-type]
