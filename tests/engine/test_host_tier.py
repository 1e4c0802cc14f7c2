"""What makes way moves to host memory and to disk, and comes back bit for bit; one prompt's is never another key's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tier_asks import MODELS, PARAMS, ask, text

from perilune.cache.radix import Node, path_to
from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit
from perilune.engine.request import SamplingParams

ROOMY = 2**24


def engine(path: Path, **settings: Any) -> EngineCore:
    given = {"dtype": "float32", "max_context": 512, "max_running": 1, "snapshot_slots": 2} | settings
    return EngineCore(EngineConfig.of(str(path), **given), path)


def tight(path: Path, **settings: Any) -> EngineCore:
    """Room for one prompt of 384 tokens and two states."""
    plan = engine(path).plan.cache
    return engine(path, cache_bytes=3 * plan.slot_bytes + 7 * plan.page_bytes, **settings)


@pytest.fixture(params=MODELS)
def path(request: pytest.FixtureRequest, golden: Path) -> Path:
    return golden / request.param


@pytest.fixture
def hybrid(golden: Path) -> Path:
    return golden / "kimi_linear"


def test_what_made_way_comes_back_bit_for_bit_around_every_boundary(path: Path) -> None:
    core, cold = tight(path, cache_host_bytes=ROOMY), engine(path, prefix_cache=False)
    lengths = (65, 127, 128, 129, 191, 192, 193, 320, 321)
    for length in lengths:
        ask(core, text(length, seed=length))
    for length in lengths:  # each pushes out the ones before
        tokens = text(length, seed=length)
        answer, cached = ask(core, tokens)
        assert answer == ask(cold, tokens)[0], length
        assert cached == (length - 1) // 64 * 64, length
    stats = core.stats()
    assert stats["prefix_evicted_pages_total"] > 0
    assert stats["tier_loads_total"] >= 5
    assert 0 < stats["host_bytes"] <= ROOMY
    assert stats["prefix_snapshots_host_total"] > 0 or not core.spec.kda_layers


def test_what_host_memory_has_no_room_for_goes_on_to_disk(path: Path, tmp_path: Path) -> None:
    plan = engine(path).plan.cache
    small = (plan.slot_bytes + 5 * plan.page_bytes) * 3 // 2
    core = tight(path, cache_host_bytes=small, cache_dir=str(tmp_path))
    cold = engine(path, prefix_cache=False)
    for seed in range(6):
        ask(core, text(321, seed=seed))
        assert core.stats()["host_bytes"] <= small
    for seed in range(6):
        assert ask(core, text(321, seed=seed)) == (ask(cold, text(321, seed=seed))[0], 320)
    stats = core.stats()
    assert stats["disk_read_bytes_total"] > 0
    assert stats["host_read_bytes_total"] + stats["disk_read_bytes_total"] > 0
    core.close()
    again = engine(path, cache_dir=str(tmp_path))
    for seed in range(6):
        assert ask(again, text(321, seed=seed)) == (ask(cold, text(321, seed=seed))[0], 320)


def test_an_engine_that_is_never_idle_writes_what_it_evicts(path: Path, tmp_path: Path) -> None:
    """No call to `tidy` and none to `close`, as if it were killed under load."""
    core = tight(path, cache_dir=str(tmp_path))
    for seed in range(5):
        ask(core, text(321, seed=seed))
    assert core._tiers is not None
    assert core._tiers._disk is not None
    core._tiers._disk.drain()
    again, cold = engine(path, cache_dir=str(tmp_path)), engine(path, prefix_cache=False)
    for seed in range(3):
        answer, cached = ask(again, text(321, seed=seed))
        assert answer == ask(cold, text(321, seed=seed))[0]
        assert cached >= 256, seed


def test_a_queue_that_is_full_costs_the_prefix_and_nothing_else(
    hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, cold = tight(hybrid, cache_dir=str(tmp_path)), engine(hybrid, prefix_cache=False)
    assert core._tiers is not None
    monkeypatch.setattr(core._tiers._disk, "_limit", 100)
    for seed in range(4):
        assert ask(core, text(321, seed=seed)) == (ask(cold, text(321, seed=seed))[0], 0)
    stats = core.stats()
    assert stats["tier_skipped_prefixes_total"] > 0
    assert stats["disk_bytes"] == 0
    core.close()


def test_the_state_a_request_takes_over_is_kept_below(hybrid: Path) -> None:
    """One row in all: the request runs in the snapshot it starts from, and the snapshot outlives that."""
    core = engine(hybrid, snapshot_slots=0, cache_host_bytes=ROOMY)
    tokens = text(128, seed=5)
    core.add(Submit("one", tokens, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True), seed=7))
    while core.busy:
        core.step()
    cold = engine(hybrid, prefix_cache=False)
    for tail in (5, 6, 7):
        assert ask(core, (*tokens, tail)) == (ask(cold, (*tokens, tail))[0], 128)
    assert core.stats()["prefix_snapshots_host_total"] == 2


def test_every_entry_is_what_its_tokens_always_give(path: Path) -> None:
    """Pages and states in host memory are those an engine with room for everything has in its arenas."""
    core, whole = tight(path, cache_host_bytes=ROOMY), engine(path, snapshot_slots=40, max_running=4)
    prompts = [(*text(192, seed=seed % 2), *text(100 + seed, seed=seed)) for seed in range(5)]
    for tokens in prompts:
        ask(core, tokens)
        ask(whole, tokens)
    assert core._tiers is not None
    host, compared = core._tiers._host, 0
    assert host is not None
    arenas = whole.runner.arenas
    for node in whole.cache._tree._nodes.values():
        key = core._tiers._chain(spelled(node), node.length, b"")[-1]
        page = arenas.page_arena.tensor[node.page]
        if found := host.read("page", key, page.numel() * page.element_size()):
            assert found == page.reshape(-1).view(torch.uint8).numpy().tobytes()
            compared += 1
        if node.snapshot is not None and (found := host.read("state", key, arenas.slot_arena.buffer.shape[1])):
            assert found == arenas.slot_arena.buffer[node.snapshot].numpy().tobytes()
            compared += 1
    assert compared > 5


def spelled(node: Node) -> list[int]:
    return [token for step in path_to(node) for token in step.key]


@pytest.mark.parametrize("tiers", ["memory", "host", "disk"])
def test_salts_share_nothing_in_any_tier(hybrid: Path, tmp_path: Path, tiers: str) -> None:
    settings: dict[str, Any] = {
        "memory": {"max_running": 4, "snapshot_slots": 12},
        "host": {"cache_host_bytes": ROOMY},
        "disk": {"cache_dir": str(tmp_path)},
    }[tiers]
    make = engine if tiers == "memory" else tight
    core, tokens = make(hybrid, **settings), text(260)
    answer = ask(core, tokens, b"one")[0]
    assert ask(core, tokens, b"other") == (answer, 0)
    assert ask(core, tokens) == (answer, 0)
    if tiers != "memory":
        for seed in (1, 2):
            ask(core, text(380, seed=seed), b"third")  # pushes them all out
    for salt in (b"one", b"other", b""):
        assert ask(core, tokens, salt) == (answer, 256)
    assert ask(core, tokens, b"fourth") == (answer, 0)
    core.close()
    if tiers == "disk":
        again = engine(hybrid, **settings)
        assert [ask(again, tokens, salt)[1] for salt in (b"fifth", b"one", b"")] == [0, 256, 256]


def test_a_miss_says_that_its_prefix_made_way(hybrid: Path) -> None:
    core = tight(hybrid)
    ask(core, text(260, seed=1))
    ask(core, text(380, seed=2))
    before = core.stats()
    assert ask(core, text(260, seed=1))[1] == 0
    after = core.stats()
    assert after["prefix_lookups_evicted_total"] == before["prefix_lookups_evicted_total"] + 1
    assert after["prefix_evicted_tokens_total"] > before["prefix_evicted_tokens_total"]
    assert ask(core, text(260, seed=9))[1] == 0
    assert core.stats()["prefix_lookups_unseen_total"] == 3


def test_a_slow_tier_is_left_alone(hybrid: Path) -> None:
    """By the rates seen so far, computing is faster."""
    core = tight(hybrid, cache_host_bytes=ROOMY)
    for seed in (1, 2):
        ask(core, text(300, seed=seed))
    assert core._tiers is not None
    assert core._tiers._host is not None
    core._tiers._host.reading.note(1, 1e6)
    assert ask(core, text(300, seed=1))[1] == 0
    assert core.stats()["tier_loads_declined_total"] == 1


def test_padding_is_reported_and_small(hybrid: Path) -> None:
    core = engine(hybrid, max_running=4)
    core.add(Submit("one", text(200), PARAMS, seed=7))
    core.step()
    running = core.stats()
    assert 0 < running["cache_bytes_padding"] <= running["cache_bytes_used"] + running["cache_bytes_cached"]
    while core.busy:
        core.step()
    kept = core.stats()
    assert kept["cache_bytes_padding"] == kept["snapshots"] * core.plan.cache.slot_padding_bytes
    assert kept["cache_bytes_padding"] <= 0.05 * kept["cache_bytes_cached"]
