"""The golden checkpoints, read only and as copies that a test may break."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from model_files import copy_golden

GOLDEN = Path(os.environ.get("PERILUNE_GOLDEN", Path(__file__).parents[1] / "golden"))
NAMES = ("deepseek_v3", "glm4_moe_lite", "kimi_k25_mxfp4", "kimi_linear", "kimi_linear_w4a16")


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Path:
    """Each golden model folder in turn."""
    return GOLDEN / str(request.param)


@pytest.fixture
def golden_root() -> Path:
    return GOLDEN


@pytest.fixture
def broken(golden: Path, tmp_path: Path) -> Path:
    """A copy of each golden model without its reference outputs."""
    return copy_golden(GOLDEN, golden.name, tmp_path)
