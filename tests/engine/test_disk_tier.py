"""After a restart a prompt's beginning comes from files, bit for bit, and from nothing that is not to be trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from tier_asks import MODELS, ask, text

from perilune.cache.snapshots import reusable
from perilune.engine.config import EngineConfig, plan_engine
from perilune.engine.core import EngineCore
from perilune.errors import ConfigError
from perilune.models.config import read_config


def engine(path: Path, **settings: Any) -> EngineCore:
    given = {"dtype": "float32", "max_context": 512, "max_running": 4} | settings
    return EngineCore(EngineConfig.of(str(path), **given), path)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def filled(path: Path, folder: Path, *prompts: tuple[int, ...]) -> None:
    core = engine(path, cache_dir=str(folder))
    for tokens in prompts:
        ask(core, tokens)
    core.close()


@pytest.fixture(params=MODELS)
def path(request: pytest.FixtureRequest, golden: Path) -> Path:
    return golden / request.param


@pytest.fixture
def hybrid(golden: Path) -> Path:
    return golden / "kimi_linear"


def test_warm_from_disk_equals_cold_around_every_boundary(path: Path, tmp_path: Path) -> None:
    prompts = [text(length, seed=length) for length in (63, 64, 65, 128, 129, 200, 321)]
    filled(path, tmp_path, *prompts)
    cold, warm = engine(path, prefix_cache=False), engine(path, cache_dir=str(tmp_path))
    for tokens in prompts:
        answer, cached = ask(warm, tokens)
        assert answer == ask(cold, tokens)[0], len(tokens)
        assert cached == reusable(len(tokens))
    assert warm.stats()["tier_loaded_tokens_total"] == sum(reusable(len(tokens)) for tokens in prompts)
    other = (*prompts[-1][:256], *text(50, seed=99))
    answer, cached = ask(warm, other)
    assert answer == ask(cold, other)[0]
    assert cached == 256


def test_a_prefix_evicted_from_memory_comes_back_from_disk(hybrid: Path, tmp_path: Path) -> None:
    plan = engine(hybrid, max_running=1).plan.cache
    tight = plan.slot_bytes * 3 + plan.page_bytes * 7
    core = engine(hybrid, max_running=1, snapshot_slots=2, cache_bytes=tight, cache_dir=str(tmp_path))
    first = ask(core, text(260, seed=1))[0]
    while core.tidy():
        pass
    for seed in (2, 3):
        ask(core, text(300, seed=seed))
    assert core.stats()["prefix_evicted_pages_total"] > 0
    assert ask(core, text(260, seed=1)) == (first, 256)
    assert core.stats()["tier_loads_total"] == 1


def test_files_and_folders_are_private(hybrid: Path, tmp_path: Path) -> None:
    os.umask(0o022)
    filled(hybrid, tmp_path / "cache", text(200))
    assert files(tmp_path / "cache")
    for place in (tmp_path / "cache").rglob("*"):
        assert stat.S_IMODE(place.stat().st_mode) == (0o700 if place.is_dir() else 0o600)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "swapped"])
@pytest.mark.parametrize("kind", ["page", "state"])
def test_a_file_that_is_not_to_be_trusted_is_counted_deleted_and_its_prefix_computed(
    hybrid: Path, tmp_path: Path, damage: str, kind: str
) -> None:
    tokens = text(200)
    filled(hybrid, tmp_path, tokens)
    victims = [file for file in files(tmp_path) if file.suffix == f".{kind}"]
    data = [file.read_bytes() for file in victims]
    for file, own, other in zip(victims, data, data[1:] + data[:1], strict=True):
        flipped = own[:-1] + bytes([own[-1] ^ 1])
        file.write_bytes({"torn": own[:-5], "flipped": flipped, "empty": b"", "swapped": other}[damage])
    warm = engine(hybrid, cache_dir=str(tmp_path))
    answer, cached = ask(warm, tokens)
    assert cached == 0
    assert answer == ask(engine(hybrid, prefix_cache=False), tokens)[0]
    assert warm.stats()["disk_corrupt_files_total"] >= 1
    assert sum(file.exists() for file in victims) < len(victims)
    warm.close()
    assert ask(engine(hybrid, cache_dir=str(tmp_path)), tokens) == (answer, 192)  # written anew


def test_entries_never_cross_models_or_dtypes(golden: Path, tmp_path: Path) -> None:
    """One folder for all; the second model has the geometry of the first."""
    tokens = text(200)
    for model, dtype in (
        ("kimi_linear", "float32"), ("kimi_linear", "bfloat16"), ("kimi_linear_w4a16", "float32"),
        ("deepseek_v3", "float32"),
    ):  # fmt: skip
        core = engine(golden / model, dtype=dtype, cache_dir=str(tmp_path))
        assert ask(core, tokens)[1] == 0
        core.close()
        assert ask(engine(golden / model, dtype=dtype, cache_dir=str(tmp_path)), tokens)[1] == 192


def test_a_folder_that_is_too_small_keeps_within_its_limit_and_comes_to_rest(hybrid: Path, tmp_path: Path) -> None:
    plan = engine(hybrid).plan.cache
    limit = (plan.slot_bytes + 3 * plan.page_bytes) * 5 // 2
    core = engine(hybrid, cache_dir=str(tmp_path), cache_disk_bytes=limit)
    for seed in range(6):
        ask(core, text(200, seed=seed))
    core.close()
    assert not core.tidy()
    assert 0 < sum(file.stat().st_size for file in files(tmp_path)) <= limit
    fresh = engine(hybrid, cache_dir=str(tmp_path), cache_disk_bytes=limit)
    for seed in range(6):
        assert ask(fresh, text(200, seed=seed))[0] == ask(engine(hybrid), text(200, seed=seed))[0]


def test_a_cache_folder_without_a_prefix_cache_is_a_contradiction(hybrid: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache_dir"):
        engine(hybrid, prefix_cache=False, cache_dir=str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Choose another"):
        engine(hybrid, cache_dir=str(tmp_path / "file"))


def test_the_plan_says_where_prefixes_go(hybrid: Path) -> None:
    plan = plan_engine(EngineConfig("m", cache_dir="/somewhere", cache_disk_bytes=2**30), read_config(hybrid).spec)
    assert any("/somewhere" in reason and "1.0 GiB" in reason for reason in plan.because)
