"""What a person does: fill the form of *train* in Prefect, see it complete, look at run and version in MLflow."""

from http import HTTPStatus
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from fieldloop.cli import runs
from fieldloop.stores import registry
from tests.conftest import Looped

RECIPE = "turbine-power"
SEED = "11"
RUN_NAME = "trained-by-a-person"
SUBMITS = 5
RUN_MS = 180_000

pytestmark = pytest.mark.timeout(600)


def shot(page: Page, output: Path, name: str) -> None:
    page.screenshot(path=output / f"{name}.png")


def submit(page: Page) -> str:
    """Press *Submit* and return the run's id; again where Prefect says 503, as it does while SQLite is locked."""
    for _ in range(SUBMITS):
        with page.expect_response(lambda response: "create_flow_run" in response.url) as submitted:
            page.get_by_role("button", name="Submit").click()
        if submitted.value.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
    assert submitted.value.ok
    return str(submitted.value.json()["id"])


def deployment(page: Page, name: str) -> Locator:
    """Return the link to a deployment; the list shows ten a page, so it is searched for."""
    page.get_by_role("searchbox", name="Search deployments").fill(name)
    return page.get_by_role("link", name=name, exact=True).first


def test_a_person_trains_from_the_form_and_finds_the_model(looped: Looped, page: Page, output: Path) -> None:
    """The form says what each parameter is; the run completes; MLflow shows its metrics and the version."""
    page.goto(f"{looped.settings.prefect_ui}/deployments")
    deployment(page, "train").click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text("Name of a recipe")).to_be_visible()
    expect(page.get_by_text("Seed of everything random")).to_be_visible()
    page.locator("input[type=text]").first.fill(RUN_NAME)
    page.locator("input[type=number]").first.fill(SEED)
    shot(page, output, "prefect-train-form")
    page.goto(f"{looped.settings.prefect_ui}/runs/flow-run/{submit(page)}")
    expect(page.get_by_text(RUN_NAME).first).to_be_visible()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=RUN_MS)
    shot(page, output, "prefect-train-run")
    page.reload()
    page.get_by_text("Artifacts", exact=True).first.click()
    expect(page.get_by_text("Candidates on the held-out windows")).to_be_visible()
    shot(page, output, "prefect-train-artifacts")

    registered = runs.run(looped.settings, "register/register", {"recipe": RECIPE}, lambda _stage: None)
    assert registered.stages[0].state == "COMPLETED"
    mlflow = registry.client(looped.settings)
    version = max(mlflow.search_model_versions(f"name = '{RECIPE}'"), key=lambda each: int(each.version))
    page.goto(f"{looped.settings.mlflow_endpoint}/#/models/{RECIPE}/versions/{version.version}")
    expect(page.get_by_text("champion").or_(page.get_by_text("challenger")).first).to_be_visible()
    expect(page.get_by_text("parity").first).to_be_visible()
    shot(page, output, "mlflow-version")
    run = mlflow.get_run(version.run_id)
    assert run.data.params["seed"] == SEED
    page.goto(f"{looped.settings.mlflow_endpoint}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    expect(page.get_by_text("mae", exact=True).first).to_be_visible()
    expect(page.get_by_text(str(run.data.metrics["mae"])[:7]).first).to_be_visible()
    shot(page, output, "mlflow-run")


def test_the_run_page_shows_the_loop(looped: Looped, page: Page, output: Path) -> None:
    """The deployments are all there, and *lifecycle* is scheduled for every Monday."""
    page.goto(f"{looped.settings.prefect_ui}/deployments")
    expect(page.get_by_role("link", name="acquire", exact=True).first).to_be_visible()
    shot(page, output, "prefect-deployments")
    for name in ("acquire", "validate", "preprocess", "train", "register", "deploy", "monitor", "lifecycle"):
        expect(deployment(page, name)).to_be_visible()
    deployment(page, "lifecycle").click()
    expect(page.get_by_text("At 03:00 AM, only on Monday")).to_be_visible()
    page.get_by_text("Upcoming", exact=True).click()
    expect(page.get_by_text("Scheduled for").first).to_be_visible()
    shot(page, output, "prefect-lifecycle")
