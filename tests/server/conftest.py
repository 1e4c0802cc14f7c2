from __future__ import annotations

from collections.abc import Iterator

import httpx
import live
import pytest
from openai import OpenAI


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
