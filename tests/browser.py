"""A headless Chromium for tests of pages. The system's own, never one that a package downloads.

Fixtures (see conftest.py): `browser`, one process per test module; `page`, a tab with an empty profile; `artefacts`,
the folder where screenshots are kept. Playwright's blocking interface keeps an event loop in the test's thread while it
lives, so a module that uses these has no `async` tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000
ARTEFACTS = Path(os.environ.get("PERILUNE_ARTEFACTS", Path(__file__).parent.parent / "artefacts"))


def chromium() -> str | None:
    """The program to start: PERILUNE_CHROMIUM, or what is installed."""
    named = os.environ.get("PERILUNE_CHROMIUM")
    names = (named,) if named else ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextmanager
def started() -> Iterator[Browser]:
    """A browser until the block ends; skips the test where there is none."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium here: `apt install chromium`, or set PERILUNE_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def profile(browser: Browser, **settings: object) -> Iterator[BrowserContext]:
    """A profile of its own: no cookies, no storage, nothing cached. `settings` are those of `Browser.new_context`.

    What a page throws and nobody catches fails the test.
    """
    context = browser.new_context(**settings)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    thrown: list[str] = []
    context.on("weberror", lambda error: thrown.append(str(error.error)))
    try:
        yield context
    finally:
        context.close()
    assert not thrown, thrown


def tab(browser: Browser, **settings: object) -> Iterator[Page]:
    """For a fixture: one tab in a profile of its own."""
    with profile(browser, **settings) as context:
        yield context.new_page()
