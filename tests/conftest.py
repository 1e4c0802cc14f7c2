"""Shared by every test: where the golden checkpoints are, and one thread so that suites can run side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# How fast a shared machine is today is nothing a test should fail on.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# No test has a GPU: Triton's kernels run in its interpreter, which is decided when they are imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

GOLDEN = Path(os.environ.get("PERILUNE_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of tiny reference checkpoints."""
    return GOLDEN


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Where screenshots go and stay, for whoever looks at a run."""
    from browser import ARTEFACTS

    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    return ARTEFACTS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Not for the whole session: asyncio tests cannot run while it lives."""
    from browser import started

    with started() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """One tab in a profile of its own."""
    from browser import tab

    yield from tab(browser)
