from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from perilune.models.config import read_config
from perilune.models.families import family_of
from perilune.plan.parameters import count_parameters


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("kimi-linear-48b", 49_122_681_728, 3.1e9),
        ("glm-4.7-flash", 29.94e9, 3.6e9),
        ("kimi-k2.5", 1026.4e9, 31.7e9),
    ],
)
def test_full_size_models_have_the_published_counts(configs: Path, name: str, total: float, active: float) -> None:
    counted = count_parameters(read_config(configs / name).spec)
    assert counted.total == (total if isinstance(total, int) else pytest.approx(total, rel=5e-4))
    assert counted.active == pytest.approx(active, rel=1e-2)


@pytest.mark.parametrize(
    "folder",
    ["data/kimi-linear-48b", "data/kimi-k2.5", "golden/kimi_linear", "golden/glm4_moe_lite", "golden/deepseek_v3"],
)
def test_the_formula_agrees_with_the_list_of_tensors(folder: str) -> None:
    spec = read_config(Path(__file__).parents[1] / folder).spec
    assert count_parameters(spec).total == sum(tensor.elements for tensor in family_of(spec).tensors(spec))


def test_a_tied_head_is_counted_once_and_read_for_every_token(configs: Path) -> None:
    spec = read_config(configs / "kimi-linear-48b").spec
    apart = count_parameters(spec)
    tied = count_parameters(dataclasses.replace(spec, tied_embedding=True))
    assert apart.total - tied.total == spec.vocab * spec.hidden
    assert apart.active == tied.active


def test_every_parameter_is_read_at_most_once_per_token(configs: Path) -> None:
    for name in ("kimi-linear-48b", "glm-4.7-flash", "kimi-k2.5"):
        counted = count_parameters(read_config(configs / name).spec)
        assert 0 < counted.experts_active < counted.experts
        assert counted.active <= counted.total - counted.embedding
