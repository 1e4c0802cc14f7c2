from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from perilune.models.families import read_spec
from perilune.models.spec import ModelSpec

TESTS = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("PERILUNE_GOLDEN", TESTS / "golden"))
NAMES = ("deepseek_v3", "glm4_moe_lite", "kimi_k25_mxfp4", "kimi_linear", "kimi_linear_w4a16")


def spec_named(name: str) -> ModelSpec:
    return read_spec(json.loads((GOLDEN / name / "config.json").read_text()))


@pytest.fixture(params=NAMES)
def golden_spec(request: pytest.FixtureRequest) -> ModelSpec:
    return spec_named(request.param)


@pytest.fixture
def hybrid_spec() -> ModelSpec:
    """KDA and MLA layers, KDA first."""
    return spec_named("kimi_linear")
