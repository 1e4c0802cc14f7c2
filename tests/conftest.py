"""Shared by every test: where the golden checkpoints are, and one thread so that suites can run side by side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
