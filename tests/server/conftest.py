from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import live
import pytest
from openai import OpenAI

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.LiveServer]:
    """One real server for every test that leaves it as it found it."""
    running = live.start(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def http(server: live.LiveServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def openai(server: live.LiveServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=live.KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.LiveServer]:
    """A server whose answers are long and slow enough to be stopped, and whose requests can be large."""
    flags = ("--max-context", "16384", "--max-body-bytes", "16MiB", "--kernels", "reference")
    running = live.start(tmp_path_factory.mktemp("roomy"), *flags)
    yield running
    running.stop()


@pytest.fixture
def chat(browser: Browser, roomy: live.LiveServer) -> Iterator[Page]:
    """A tab of a signed-in user, the page opened."""
    from browser import profile
    from page_driver import open_page, signed_in

    with profile(browser) as context:
        yield open_page(signed_in(context).new_page(), roomy)
