"""The page as a person uses it: helpers for tests in a browser. What is waited for is on the screen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from live import KEY, LiveServer
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

AXE = Path(__file__).parent / "data" / "page" / "axe-core-4.14.1.min.js"
CHAT = "**/v1/chat/completions"
PATIENCE_MS = 60_000

expect.set_options(timeout=PATIENCE_MS)


def signed_in(context: BrowserContext) -> BrowserContext:
    """Every tab of it has the key, as if its user had typed it before."""
    context.add_init_script(f"if (location.port) sessionStorage.setItem('perilune.key', {KEY!r})")
    return context


def open_page(page: Page, server: LiveServer | str, path: str = "/") -> Page:
    """`server`, or its URL."""
    page.goto((server if isinstance(server, str) else server.url) + path)
    expect(page.locator(".dot.up")).to_be_visible()
    return page


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def answer(page: Page, number: int = 0) -> Locator:
    return page.locator("article.answer").nth(number)


def finished(page: Page, number: int = 0) -> Locator:
    """The answer, once it is there whole (or has failed)."""
    expect(answer(page, number)).to_have_attribute("aria-busy", "false")
    return answer(page, number)


def streaming(page: Page, number: int = 0) -> Locator:
    """The answer, once its first words are there and before its last."""
    shown = page.locator("article.answer").nth(number).locator(".prose")
    expect(shown).not_to_be_empty()
    expect(answer(page, number)).to_have_attribute("aria-busy", "true")
    return answer(page, number)


def bend(page: Page, **fields: object) -> None:
    """Adds fields to what the page asks of the real server."""

    def more(route: Route) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, **fields}))

    page.route(CHAT, more)


ENDLESS = {"ignore_eos": True, "max_tokens": 15_000}


def replay(page: Page, *deltas: dict) -> None:
    """Answers in the server's place, with these deltas: for what the built-in model would not say."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 3}}
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    body = ": a comment, as proxies send them\n\n"
    body += "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(CHAT, lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def asked(page: Page) -> list[dict]:
    """Bodies of the chat requests that the page sends from now on, a list that grows."""
    bodies: list[dict] = []

    def note(request: object) -> None:
        if request.url.endswith("/v1/chat/completions"):
            bodies.append(request.post_data_json)

    page.on("request", note)
    return bodies


def violations(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['nodes'][0]['html']} {one['nodes'][0]['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def wait_until(true: Callable[[], object]) -> None:
    """For what is not on the screen."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def requests_elsewhere(page: Page, server: LiveServer) -> Callable[[], list[str]]:
    """Addresses on other hosts that the page asked for since."""
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    return lambda: [url for url in seen if not url.startswith((server.url, "blob:", "data:"))]
