"""What a person does about a rollout in Prefect's pages: decides by the form, suspends, resumes, cancels."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect
from prefect.client.orchestration import SyncPrefectClient

from fieldloop.domain.rollout import NOTHING
from fieldloop.domain.rollout.record import Phase, Rollout
from fieldloop.stores import broker, fleet, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tests.conftest import Looped
from tests.edge.targets import poll

DECIDED, HELD = "page-decided", "page-held"  # targets whose agents never run, each with a rollout of its own
PLANS = {
    DECIDED: {"approval": "before every wave", "on_breach": "ask", "limits": {"deadline_s": 1}},
    HELD: {"limits": {"deadline_s": 3600}},
}
WORKER_S = 90.0  # for a worker to start a run, or to end one
TOLD = ("/resume", "/set_state")  # where the pages tell Prefect what a person wants of a run
PRESSES = 5

pytestmark = pytest.mark.timeout(600)

T = TypeVar("T")


@pytest.fixture(scope="module")
def runs(looped: Looped) -> Iterator[dict[str, UUID]]:
    """Have the worker roll the champion out to each of the targets, at once; return the flow runs.

    A test asks for it before the browser, whose loop is at work in this thread then.
    """
    settings = looped.settings
    fleet.add_targets(settings, Lake(settings), [fleet.Target(name, ("R80711",), (f"only={name}",)) for name in PLANS])
    with SyncPrefectClient(api=settings.prefect_api) as client:
        deployment = client.read_deployment_by_name("deploy/deploy").id
        wanted = {name: {"labels": [f"only={name}"], "plan": plan} for name, plan in PLANS.items()}
        made = {
            name: client.create_flow_run_from_deployment(deployment, parameters=parameters).id
            for name, parameters in wanted.items()
        }
    yield made
    fleet.remove_targets(settings, Lake(settings), list(PLANS))


def test_a_person_decides_by_the_form(looped: Looped, runs: dict[str, UUID], page: Page, output: Path) -> None:
    """Whether a wave begins, and what becomes of a rollout that was stopped by a gate; the form says what is asked."""
    settings, run = looped.settings, runs[DECIDED]
    _await(settings, run, lambda rollout: (rollout.phase, rollout.asked) == (Phase.ASKING, 0))
    page.goto(f"{settings.prefect_ui}/runs/flow-run/{run}")
    _choose(page, "Wave 1 of 1 is to begin", "go on")
    stopped = _await(settings, run, lambda rollout: (rollout.phase, rollout.asked) == (Phase.ASKING, 1))
    page.reload()
    expect(page.get_by_text("Paused", exact=True).first).to_be_visible()
    page.screenshot(path=output / "prefect-deploy-asks.png")
    _choose(page, "silence breached: 1 of 1 targets are silent", "stop")
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    ended = _await(settings, run, lambda rollout: not rollout.active)
    assert (ended.name, ended.phase) == (stopped.name, Phase.STOPPED)


def test_a_person_suspends_resumes_and_cancels(looped: Looped, runs: dict[str, UUID], page: Page, output: Path) -> None:
    """Resumed, another process goes on with the same rollout; cancelled, nothing of it is left to happen."""
    settings, run = looped.settings, runs[HELD]
    began = _await(settings, run, lambda rollout: (rollout.phase, rollout.asked) == (Phase.RUNNING, 1))
    page.goto(f"{settings.prefect_ui}/runs/flow-run/{run}")
    page.get_by_text("Artifacts", exact=True).first.click()
    expect(page.get_by_text(f"How {began.name} goes")).to_be_visible()
    _press(page, "Suspend", "Submit")
    _await(settings, run, lambda rollout: rollout.phase is Phase.PAUSED)
    page.screenshot(path=output / "prefect-deploy-suspended.png")
    _press(page, "Resume", "Submit")
    resumed = _await(settings, run, lambda rollout: rollout.holder != began.holder)
    assert (resumed.name, resumed.phase) == (began.name, Phase.RUNNING)
    page.reload()
    _press(page, "Cancel", "Confirm")
    assert _await(settings, run, lambda rollout: not rollout.active).phase is Phase.CANCELLED
    expect(page.get_by_text("Cancelled", exact=True).first).to_be_visible(timeout=WORKER_S * 1000)
    assert _beside(_asked(settings, HELD)) == NOTHING


def _choose(page: Page, question: str, choice: str) -> None:
    """Answer the form of a paused run, which asks this."""
    page.get_by_role("button", name="Resume").click()
    form = page.locator(".p-modal")
    expect(form.get_by_text(question)).to_be_visible()
    expect(form.get_by_text("Go on with the rollout, put back what ran before, or leave everything")).to_be_visible()
    form.locator("button.p-select-button__control").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("option", name=choice).click()
    _confirm(page, "Submit")


def _press(page: Page, button: str, confirmed: str) -> None:
    """Press a button of a run's page, and the one of the question that it asks back."""
    page.get_by_role("button", name=button, exact=True).click()
    _confirm(page, confirmed)


def _confirm(page: Page, button: str) -> None:
    """Press a button of the question that is open; again where Prefect says 503, as it does while SQLite is locked."""
    for _ in range(PRESSES):
        with page.expect_response(lambda response: response.url.endswith(TOLD)) as answer:
            page.locator(".p-modal").get_by_role("button", name=button, exact=True).click()
        if answer.value.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
    assert answer.value.ok, answer.value.text()


def _await(settings: Settings, run: UUID, wanted: Callable[[Rollout], bool]) -> Rollout:
    """Wait until the only rollout of a flow run is as wanted."""

    async def own() -> Rollout | None:
        async with broker.platform(settings) as (_, js):
            found = [head.rollout for head in await rollouts.heads(js) if str(run) in head.rollout.runs]
            assert len(found) <= 1
            return found[0] if found else None

    def look() -> Rollout | None:
        rollout = _beside(own())
        return rollout if rollout is not None and wanted(rollout) else None

    return poll(look, lambda: str(_beside(own())), WORKER_S)


async def _asked(settings: Settings, target: str) -> str | None:
    async with broker.platform(settings) as (_, js):
        desired = (await rollouts.held(js, [target]))[target].desired
        return desired.release if desired else None


def _beside(work: Coroutine[Any, Any, T]) -> T:
    """Run something in another thread: the browser's own loop is at work in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
