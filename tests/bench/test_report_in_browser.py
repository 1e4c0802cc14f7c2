"""The report as people see it: opened from a file in a real browser, light and dark, nothing fetched from anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from reports import entries

from perilune.bench.report.page import page as report_of

SIZE = {"width": 1360, "height": 900}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(report_of([("results", entries())], "a sweep, measured twice"), encoding="utf-8")
    return path


@pytest.fixture
def opened(page: Page, report: Path) -> Page:
    page.set_viewport_size(SIZE)
    page.goto(report.as_uri())
    return page


def test_everything_is_in_the_one_file(page: Page, report: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert asked == [report.as_uri()]
    assert page.locator("script").count() == 0


def test_each_chart_is_drawn_within_its_frame(opened: Page) -> None:
    figures = opened.locator("figure")
    titles = figures.locator("h3").all_inner_texts()
    assert {"Throughput against interactivity", "Cache over time", "Memory over time", "Accuracy beside speed"} <= {
        *titles
    }
    for index in range(figures.count()):
        frame = figures.nth(index).bounding_box()
        chart = figures.nth(index).locator("svg").bounding_box()
        assert frame is not None
        assert chart is not None
        assert chart["height"] > 100
        assert frame["x"] <= chart["x"]
        assert chart["x"] + chart["width"] <= frame["x"] + frame["width"] + 1
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_on_a_phone_it_fits_and_its_charts_can_be_read(page: Page, report: Path) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for text in page.locator("figure").first.locator("svg > text").all():
        box = text.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 5
        assert max(box["width"], box["height"]) > 9, "about nine pixels high, whichever way it is turned"
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 400


def test_hovering_over_a_mark_shows_its_numbers_and_a_click_leads_to_where_they_are_from(opened: Page) -> None:
    tip = opened.locator("figure").first.locator("a.tip").first
    box = tip.locator(".box")
    expect(box).to_be_hidden()
    tip.locator(".target").hover()
    expect(box).to_be_visible()
    assert "tokens/s" in (box.text_content() or "")
    details = opened.locator(f"details:has(#{_anchor(tip.get_attribute('href'))})")
    assert details.get_attribute("open") is None
    tip.locator(".target").click()
    expect(details).to_have_attribute("open", "")


def test_it_is_readable_in_the_dark_and_a_picture_is_kept(browser: Browser, report: Path, artefacts: Path) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport=SIZE)
        tab = context.new_page()
        tab.goto(report.as_uri())
        tab.screenshot(path=artefacts / f"bench-report-{scheme}.png")
        shades[scheme] = [
            tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
        ]
        context.close()
    assert shades["light"] != shades["dark"]
    assert all(_contrast(*pair) > 7 for pair in shades.values())


def _anchor(href: str | None) -> str:
    """As a selector: an identifier that begins with a digit is written out."""
    name = (href or "").removeprefix("#")
    return f"\\3{name[0]} {name[1:]}" if name[:1].isdigit() else name


def _contrast(front: str, back: str) -> float:
    """The ratio of WCAG 2 between two `rgb(r, g, b)`."""
    levels = []
    for colour in (front, back):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        levels.append(0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05)
    return max(levels) / min(levels)
