"""A browser window for the tests that do what a person does."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

PAGE_MS = 30_000
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Open a browser window."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium; Debian and Ubuntu: sudo apt-get install chromium")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses its sandbox to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*FLAGS, *sandbox])
        window = browser.new_page(viewport={"width": 1400, "height": 1200})
        window.set_default_timeout(PAGE_MS)
        expect.set_options(timeout=PAGE_MS)
        yield window
        browser.close()
