"""What a person does: fill the form of *train* in Prefect, see it complete, look at run and version in MLflow."""

import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from fieldloop.cli import runs
from fieldloop.cli.enrol import enrol_devices
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from infra.local.turbines import Broker, replay

RECIPE = "turbine-power"
DEVICES = ["R80711", "R80736"]
SPAN = datetime(2014, 12, 1, tzinfo=UTC), datetime(2015, 1, 20, tzinfo=UTC)
SEED = "11"
PAGE_MS = 30_000
RUN_MS = 180_000
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; Debian and Ubuntu: sudo apt-get install chromium"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Open a browser window."""
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses its sandbox to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *sandbox])
        window = browser.new_page(viewport={"width": 1400, "height": 1200})
        window.set_default_timeout(PAGE_MS)
        yield window
        browser.close()


@pytest.fixture(scope="module")
def windows(platform: Settings) -> Settings:
    """Bring fifty days of two turbines as far as *train* needs them, by the flows themselves."""
    enrol_devices(platform, DEVICES, "senvion-mm82")
    certificate = platform.certificate("device", DEVICES[0])
    replay(
        Broker(platform.host, platform.mqtt_port, certificate.cert.parents[1], certificate.ca),
        DEVICES,
        *SPAN,
        rate=None,
    )
    for flow, parameters in (("acquire", {}), ("validate", {}), ("preprocess", {"recipe": RECIPE})):
        runs.run(platform, f"{flow}/{flow}", parameters, lambda _stage: None)
    return platform


def shot(page: Page, output: Path, name: str) -> None:
    page.screenshot(path=output / f"{name}.png")


def test_a_person_trains_from_the_form_and_finds_the_model(windows: Settings, page: Page, output: Path) -> None:
    """The form says what each parameter is; the run completes; MLflow shows its metrics and the version."""
    page.goto(f"{windows.prefect_ui}/deployments")
    page.get_by_role("link", name="train", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(page.get_by_text("Name of a recipe")).to_be_visible()
    expect(page.get_by_text("Seed of everything random")).to_be_visible()
    page.locator("input[type=number]").first.fill(SEED)
    shot(page, output, "prefect-train-form")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("link", name=re.compile("^View run")).or_(page.get_by_text("View run")).first.click()
    expect(page.get_by_text("Completed").first).to_be_visible(timeout=RUN_MS)
    shot(page, output, "prefect-train-run")
    page.get_by_role("button", name="Artifacts").or_(page.get_by_role("tab", name="Artifacts")).first.click()
    expect(page.get_by_text("train", exact=True).first).to_be_visible()
    shot(page, output, "prefect-train-artifacts")

    registered = runs.run(windows, "register/register", {"recipe": RECIPE}, lambda _stage: None)
    assert registered.stages[0].state == "COMPLETED"
    version = registry.version(windows, RECIPE, "champion")
    page.goto(f"{windows.mlflow_endpoint}/#/models/{RECIPE}/versions/{version.version}")
    expect(page.get_by_text("champion").first).to_be_visible()
    shot(page, output, "mlflow-version")
    run = registry.client(windows).get_run(version.run_id)
    assert run.data.params["seed"] == SEED
    page.goto(f"{windows.mlflow_endpoint}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    expect(page.get_by_text("mae", exact=True).first).to_be_visible()
    expect(page.get_by_text(f"{run.data.metrics['mae']:.3f}"[:5]).first).to_be_visible()
    shot(page, output, "mlflow-run")


def test_the_run_page_shows_the_loop(windows: Settings, page: Page, output: Path) -> None:
    """The deployments are all there, and *lifecycle* is scheduled for every Monday."""
    page.goto(f"{windows.prefect_ui}/deployments")
    for name in ("acquire", "validate", "preprocess", "train", "register", "deploy", "monitor", "lifecycle"):
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()
    shot(page, output, "prefect-deployments")
    page.get_by_role("link", name="lifecycle", exact=True).first.click()
    expect(page.get_by_text(re.compile("03:00 AM", re.IGNORECASE)).first).to_be_visible()
    shot(page, output, "prefect-lifecycle")
