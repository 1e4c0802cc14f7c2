from __future__ import annotations

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("PERILUNE_GOLDEN", TESTS / "golden"))


@pytest.fixture
def golden() -> Path:
    """The folder of the golden checkpoints."""
    return GOLDEN


@pytest.fixture
def configs() -> Path:
    """Full-size configs without weights."""
    return TESTS / "data"
