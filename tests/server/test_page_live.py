"""The live view in a real browser, while a real engine works."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from browser import profile
from live import MODEL, LiveServer
from page_driver import ENDLESS, open_page, replay, signed_in, violations
from playwright.sync_api import Browser, Page, expect

PROMPT = "The code of the blue harbour is 4821. " * 40


@contextmanager
def busy(server: LiveServer, answers: int, prompt: str = PROMPT) -> Iterator[None]:
    """So many answers to one prompt under way, until the block ends."""
    end = threading.Event()

    def listen() -> None:
        body = {"model": MODEL, "prompt": prompt, "n": answers, "stream": True, **ENDLESS}
        body["max_tokens"] = 15_000 if prompt == PROMPT else 1_000
        with server.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
            for _ in response.iter_lines():
                if end.is_set():
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(60)


@pytest.fixture
def live_view(chat: Page) -> Page:
    chat.get_by_role("link", name="Live").click()
    expect(chat.get_by_role("heading", name="Memory").first).to_be_visible()
    return chat


def test_an_idle_engine_shows_that_nothing_runs_and_what_was_planned(live_view: Page, roomy: LiveServer):
    roomy.wait_idle()
    expect(live_view.get_by_text("Nothing runs and nothing waits.")).to_be_visible()
    live_view.get_by_text("What was planned, and why").click()
    expect(live_view.get_by_text(re.compile("context 16384"))).to_be_visible()


def test_requests_are_shown_with_what_they_hold_while_they_run(live_view: Page, roomy: LiveServer, artefacts: Path):
    with roomy.client() as client:
        client.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, "max_tokens": 1}).raise_for_status()
    with busy(roomy, 3):
        rows = live_view.locator("tbody tr").filter(has_text="answering")
        expect(rows).to_have_count(3)
        expect(rows.first).to_contain_text("all that can be")
        expect(live_view.locator(".figures")).to_contain_text("3 of 8")
        expect(live_view.get_by_role("img", name=re.compile(r"request #\d+ \d+ pages and \d+ shared"))).to_be_visible()
        expect(live_view.locator(".pulse")).to_contain_text("tokens/s")
        live_view.screenshot(path=artefacts / "live.png")
    expect(live_view.get_by_text("Nothing runs and nothing waits.")).to_be_visible()


def test_a_long_prompt_is_seen_to_be_read(live_view: Page, roomy: LiveServer):
    with busy(roomy, 1, f"Once more. {PROMPT * 20}"):
        reading = live_view.get_by_role("progressbar", name=re.compile(r"\d+ % of the prompt read"))
        expect(reading).to_be_visible()
        expect(live_view.locator("tbody tr").filter(has_text="answering")).to_have_count(1)


def test_more_requests_than_slots_are_seen_to_wait(live_view: Page, roomy: LiveServer):
    with busy(roomy, 10):
        expect(live_view.locator("tbody tr").filter(has_text="waiting")).to_have_count(2)
        expect(live_view.locator(".figures")).to_contain_text("8 of 8")


def test_cache_hits_are_counted_by_reason(live_view: Page, roomy: LiveServer):
    hits = live_view.get_by_role("row", name=re.compile("^hit")).locator("td").first
    expect(hits).not_to_be_empty()
    before = int(hits.inner_text())
    with roomy.client() as client:
        for _ in range(2):
            client.post("/v1/completions", json={"model": MODEL, "prompt": f"Now {PROMPT}", "max_tokens": 1})
    expect(hits).to_have_text(str(before + 1))


def test_the_doctor_has_its_say(live_view: Page):
    card = live_view.get_by_role("region", name="Host")
    expect(card.locator("p, details").first).to_be_visible()


def test_a_warning_of_the_doctor_shows_its_reason_and_fix(chat: Page):
    check = {"id": "mem.limit", "status": "warn", "says": "Half of the memory is out of reach", "why": "A limit.",
             "fix": {"debian": ["do this"], "fedora": ["do this"]}}  # fmt: skip
    chat.route("**/doctor", lambda route: route.fulfill(json={"target": "cpu", "verdict": "warn", "checks": [check]}))
    chat.get_by_role("link", name="Live").click()
    chat.get_by_text("Half of the memory is out of reach").click()
    expect(chat.get_by_text("A limit.")).to_be_visible()
    expect(chat.locator(".check pre")).to_have_text("do this")


def test_nobody_asks_the_engine_once_the_page_is_closed(chat: Page, roomy: LiveServer):
    chat.close()
    roomy.wait_idle()
    with httpx.stream("GET", f"{roomy.url}/live") as refused:
        assert refused.status_code == 401


PROSE = """## Title

Text with `code`, a [link](https://example.org) and

| a | b |
|---|---|
| 1 | 2 |

```py
x = 1
```"""
LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 800},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    },
}


@pytest.mark.parametrize("look", LOOKS)
def test_everybody_can_read_and_reach_everything(browser: Browser, roomy: LiveServer, artefacts: Path, look: str):
    with profile(browser, **LOOKS[look]) as context:
        page = context.new_page()
        page.goto(roomy.url)
        expect(page.get_by_label("API key")).to_be_visible()
        assert violations(page) == []
        signed_in(context)
        open_page(page, roomy)
        assert violations(page) == []
        replay(page, {"reasoning_content": "Thinking."}, {"content": PROSE})
        page.get_by_label("Your message").fill("Show everything")
        page.keyboard.press("Enter")
        expect(page.locator(".prose pre")).to_be_visible()
        page.get_by_role("button", name="Settings").click()
        assert violations(page) == []
        page.screenshot(path=artefacts / f"chat-{look}.png")
        page.get_by_role("link", name="Live").click()
        with busy(roomy, 3):
            expect(page.locator("tbody tr").filter(has_text="answering")).to_have_count(3)
            assert violations(page) == []
            page.screenshot(path=artefacts / f"live-{look}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        roomy.wait_idle()


def test_the_keyboard_alone_is_enough(chat: Page):
    chat.reload()
    expect(chat.locator(".dot.up")).to_be_visible()
    name = "(({activeElement: it}) => it.getAttribute('aria-label') ?? it.textContent)(document)"
    reached = set()
    for _ in range(12):
        chat.keyboard.press("Tab")
        reached.add(chat.evaluate(name).strip())
    assert {"Skip to content", "Chat", "Live", "Settings", "Your message", "Attach a text file"} <= reached
