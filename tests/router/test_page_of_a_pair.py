"""The page as a router answers it: chat over two engines, and a view of what goes between them."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import live
import pytest
from browser import profile
from page_driver import ask, finished, open_page, signed_in, violations
from playwright.sync_api import Browser, expect
from processes import start_router

from perilune.pd.keys import KEY_VARIABLE

VARIABLES = {KEY_VARIABLE: "a key that only tests know"}
QUESTION = "What is chunked prefill, and who needs it? " * 20


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[live.LiveServer, live.LiveServer, str]]:
    """A prefill engine, a decode engine, and the URL of the router in front of them."""
    folder = tmp_path_factory.mktemp
    flags = ("--pd-transports", "local,tcp")
    prefill, decode = (
        live.start(folder(role), "--role", role, *flags, variables=VARIABLES) for role in ("prefill", "decode")
    )
    named = ("--prefill", prefill.url, "--decode", decode.url, "--remote-from", "64", "--disturbance", "1000")
    process, url = start_router(
        folder("route"), *named, "--api-key", live.KEY, "--worker-key", live.KEY, variables=VARIABLES
    )
    yield prefill, decode, url
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    for each in (prefill, decode):
        each.stop()


def test_the_page_of_a_router_chats_and_shows_engines_and_hand_overs(
    browser: Browser, pair: tuple[live.LiveServer, live.LiveServer, str], artefacts: Path
):
    prefill, decode, url = pair
    assert httpx.get(f"{url}/live").status_code == 401
    assert httpx.get(url, headers={"Origin": "https://evil.example"}).status_code == 403
    with profile(browser, viewport={"width": 1280, "height": 820}) as context:
        page = open_page(signed_in(context).new_page(), url)
        for number in range(2):
            ask(page, f"{number}: {QUESTION}")
            expect(finished(page, number).locator(".numbers")).to_be_visible()
        page.get_by_role("link", name="Live").click()
        expect(page.locator(".engine")).to_have_count(2)
        expect(page.locator(".figures")).to_contain_text("2 of 2")
        row = page.get_by_role("region", name="Caches handed over").get_by_role("row", name=re.compile("^p0 d0"))
        expect(row.locator("td").nth(3)).to_have_text("2")
        assert violations(page) == []
        page.screenshot(path=artefacts / "pair.png")
        decode.process.kill()
        expect(page.locator(".engine").filter(has_text="d0")).to_contain_text("does not answer")
        inside = open_page(context.new_page(), prefill.url, "/#/live")
        card = inside.get_by_role("region", name="Caches handed over")
        expect(card).to_contain_text("role: prefill")
        expect(card).to_contain_text(re.compile("given away\\s*2"))
