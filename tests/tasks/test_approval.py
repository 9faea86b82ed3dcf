"""A person's word before a version becomes champion, on the real Prefect and the real MLflow."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.input import keyset_from_base_key
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from fieldloop.cli.main import app
from fieldloop.domain.errors import ServiceError
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from tasks import approval
from tasks.approval import ASKED, RUN, Choice, answer, approve
from tasks.challenge import Outcome, Verdict, judge
from tasks.register import Proved, conclude, enter, prove
from tasks.train import begin, train_candidate
from tests.tasks.farm import FarmSettings, farm, write_tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-approval"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def farmed(platform: Settings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm's settings, with a recipe that asks."""
    settings = farm(platform, tmp_path_factory.mktemp("farm"), NAME)
    path = settings.root / "recipes" / f"{NAME}.yaml"
    path.write_text(path.read_text().replace("promotion: {metric: mae}", "promotion: {metric: mae, approval: true}"))
    return settings


@pytest.fixture(scope="module")
def proved(farmed: FarmSettings) -> Proved:
    """A version that is entered, and would be the first champion."""
    training = begin(farmed, NAME, ["ridge"], *write_tables(farmed, NAME), 7)
    found = prove(farmed, NAME, train_candidate(farmed, training, "ridge", 7).run_id)
    enter(farmed, found)
    return found


@pytest.fixture
def settings(farmed: FarmSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[FarmSettings]:
    """The farm, which this process's flows find."""
    monkeypatch.setattr(approval, "Settings", lambda: farmed)
    with temporary_settings({PREFECT_API_URL: farmed.prefect_api}):
        yield farmed


@flow(name="asks", validate_parameters=False)
def asking(verdict: Verdict) -> Verdict:
    """What *register* does between the comparison and the aliases."""
    return approve(NAME, 1, verdict)


def killed_while_it_waits(settings: FarmSettings, verdict: Verdict) -> None:
    """Let a process of its own ask, and end it with SIGKILL once its flow run is paused."""
    program = "from tests.tasks.test_approval import ask; ask()"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        env={**os.environ, "PREFECT_API_URL": settings.prefect_api},
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([settings.model_dump(mode="json"), asdict(verdict)]))
    process.stdin.close()
    wait_until(lambda: paused(settings))
    process.kill()
    assert process.wait() == -signal.SIGKILL


def ask() -> None:
    """Ask about the verdict on standard input."""
    values, verdict = json.load(sys.stdin)
    made = FarmSettings.model_validate(values)
    approval.Settings = lambda: made  # type: ignore[assignment,misc]
    asking(Verdict(**{**verdict, "outcome": Outcome(verdict["outcome"])}))


def test_a_person_rejects_and_later_approves_what_a_killed_run_asked(settings: FarmSettings, proved: Proved) -> None:
    """The champion stays as it is; the answer to a run that was killed while it waited is taken by the next one."""
    version = registry.version(settings, NAME, 1)
    verdict = judge(settings, version)
    assert (verdict.outcome, verdict.promoted) == (Outcome.FIRST, True)
    done: list[Verdict] = []
    running = threading.Thread(target=in_context(settings, lambda: done.append(asking(verdict))))
    running.start()
    wait_until(lambda: paused(settings))
    words = ["model", "reject", f"{NAME}/1", "--reason", "not in winter"]
    said = CliRunner().invoke(app, words, env=settings.environment(), catch_exceptions=False)
    assert "reject; the waiting run goes on within seconds" in said.output
    running.join(PATIENCE_S)
    assert (done[0].outcome, done[0].promoted) == (Outcome.REJECTED, False)
    assert done[0].reason.startswith("rejected by a person (not in winter); there was no champion before")
    assert conclude(settings, proved, 1, done[0]).verdict.alias == "challenger"
    assert registry.version(settings, NAME, 1).aliases == ("challenger",)
    assert judge(settings, registry.version(settings, NAME, 1)) == done[0]

    again = replace(verdict, basis="asked anew")
    killed_while_it_waits(settings, again)
    asked = registry.version(settings, NAME, 1).tags[ASKED]
    answer(settings, registry.version(settings, NAME, 1), Choice.PROMOTE, "the storm is over")
    approved = asking(again)
    assert (approved.outcome, approved.promoted) == (Outcome.APPROVED, True)
    assert approved.reason.startswith("approved by a person (the storm is over); there was no champion")
    assert registry.version(settings, NAME, 1).tags[ASKED] == asked
    assert conclude(settings, proved, 1, approved).verdict.alias == "champion"
    assert registry.version(settings, NAME, 1).aliases == ("champion",)

    with pytest.raises(ServiceError, match="no flow run waits for an answer; run the flow `register`"):
        answer(settings, registry.version(settings, NAME, 1), Choice.PROMOTE, "")


def test_time_that_runs_out_while_the_run_waits_rejects(settings: FarmSettings, proved: Proved) -> None:
    """The run completes with the rejection, though Prefect fails runs whose pause expires; time runs from the first."""
    path = settings.root / "recipes" / f"{NAME}.yaml"
    before = path.read_text()
    path.write_text(before.replace("approval: true", "approval: true, approval_hours: 0.001"))
    verdict = Verdict(Outcome.WON, True, "better", {"mae": 1.0}, 1, {"mae": 2.0}, "of another question")
    state = asking(verdict, return_state=True)
    asked = registry.version(settings, NAME, 1).tags[ASKED]
    late = asking(verdict)
    path.write_text(before)
    assert state.is_completed()
    assert state.result().reason == late.reason == "rejected as nobody answered within 0.001 h; better"
    assert registry.version(settings, NAME, 1).tags[ASKED] == asked


def in_context(settings: FarmSettings, work: Callable[[], None]) -> Callable[[], None]:
    """Let a thread find the test's Prefect."""

    def run() -> None:
        with temporary_settings({PREFECT_API_URL: settings.prefect_api}):
            work()

    return run


def paused(settings: FarmSettings) -> bool:
    """Say whether the run that the version names waits, and has said for what: killed before that, it asks nothing."""
    run = registry.version(settings, NAME, 1).tags.get(RUN)
    if run is None:
        return False
    with SyncPrefectClient(api=settings.prefect_api) as client:
        state = client.read_flow_run(UUID(run)).state
        form = keyset_from_base_key("paused-approval")["schema"]
        asked = client.filter_flow_run_input(UUID(run), form, limit=1, exclude_keys=set())
    return state is not None and state.is_paused() and bool(asked)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
