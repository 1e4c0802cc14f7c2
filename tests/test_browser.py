"""The browser that tests of pages share."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page


def test_a_page_is_rendered_and_can_be_kept_as_a_picture(page: Page, artefacts: Path, tmp_path: Path):
    page.set_content("<title>a page</title><h1>Perilune</h1>")
    assert page.title() == "a page"
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert artefacts.is_dir()


def test_every_tab_starts_with_an_empty_profile(browser: Browser, page: Page):
    assert len(browser.contexts) == 1
    assert page.context.cookies() == []
