"""The GPU's benchmark without a GPU: the whole programme in Triton's interpreter, and its parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu
import pytest
import torch
from gpus import rows, whole
from gpus.clock import Clock
from gpus.rows import Row, Target
from gpus.weights import weight
from peers.slices import write_slice
from peers.workloads import Workload
from small_gpu import use_small_gpu

from perilune.models.checkpoint import SINGLE, Checkpoint
from perilune.models.families import read_spec
from perilune.models.loader import load_weights
from perilune.ops.gpu.cases import FORMATS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_gpu(monkeypatch)


def test_the_dry_run_measures_every_row_and_writes_what_was_asked_for_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--json", str(file)])
    assert gpu.main() == 0
    result = json.loads(file.read_text())
    assert result["interpreted"]
    assert result["fla_core"].startswith("fla-core is not here")
    assert result["device"]["read"] > 0
    found = {row["name"]: row for row in result["rows"]}
    kinds = {"linear", "experts", "rms_norm", "router", "swiglu", "mla_store", "kda", "mla", "truncate", "draw"}
    assert {name.replace(",", "").split()[0] for name in found} == kinds | {"prefill", "decode"}
    assert all(row["perilune"] > 0 for row in found.values())
    assert all(row["limit"] > 0 for name, row in found.items() if "error" not in name)
    assert found["kda prefill, 70 tokens: error"]["perilune"] < 1e-2
    assert found["decode"]["target"]["least"] == 0.45
    assert found["decode after 128"]["unit"] == "tokens/s"
    printed = capsys.readouterr().out
    assert all(f"{name}, " in printed for name in found)


def test_without_a_gpu_it_says_so_and_names_what_runs_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 1
    assert "--dry" in capsys.readouterr().err


def test_less_is_better_for_times_and_more_for_rates() -> None:
    time = Row("x", "µs", [30.0, 10.0, 20.0], limit=10.0, peer=[40.0])
    assert (time.value, time.of_limit, time.ratio) == (20.0, 0.5, 2.0)
    assert Row("x", "tokens/s", [20.0], limit=40.0).of_limit == 0.5
    assert (Target("a", 2.0, 1.9).reached, Target("a", 2.0, 2.0).reached, Target("a", 2.0, None).reached) == (
        False,
        True,
        None,
    )
    assert "no (1.90)" in rows.text(Row("x", "µs", [1.0], target=Target("x fla-core", 2.0, 1.9)))


@pytest.mark.parametrize("form", FORMATS)
def test_random_weights_keep_the_variance_of_what_they_multiply(form: str) -> None:
    torch.manual_seed(0)
    w = weight(form, CPU, 256, 512)
    out = torch.randn(64, 512) @ w.dequantise(torch.float32).T
    assert 0.6 < float(out.std()) < 1.7


def test_a_hollow_checkpoint_is_a_whole_one_but_for_its_bytes(tmp_path: Path) -> None:
    config = whole.slice_config(whole.MODELS["kimi"], 4, 163_840)
    whole.hollow(tmp_path, config)
    file = (tmp_path / SINGLE).stat()
    assert file.st_size > 3e9
    assert file.st_blocks * 512 < 64e6
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check()
    assert checkpoint.spec == read_spec(config)


def test_drawn_weights_are_what_the_loader_holds_of_a_checkpoint_with_bytes(tmp_path: Path) -> None:
    plan = whole.TINY
    config = whole.slice_config(whole.MODELS["kimi"], plan.layers, plan.vocab) | plan.change
    whole.hollow(tmp_path / "hollow", config)
    (tmp_path / "full").mkdir()
    write_slice(tmp_path / "full", config, seed=0)
    drawn = whole.drawn(Checkpoint.open(tmp_path / "hollow"), torch.bfloat16)
    loaded = load_weights(Checkpoint.open(tmp_path / "full"), torch.bfloat16)
    assert drawn.keys() == loaded.keys()
    for name, value in drawn.items():
        assert type(value) is type(loaded[name])
        assert value.shape == loaded[name].shape
        assert value.nbytes == loaded[name].nbytes


def test_a_base_that_is_only_pretended_costs_no_step_and_is_found_again(tmp_path: Path) -> None:
    plan = whole.TINY
    whole.hollow(tmp_path, whole.slice_config(whole.MODELS["kimi"], plan.layers, plan.vocab) | plan.change)
    engine = whole.Whole(Checkpoint.open(tmp_path), plan, CPU)
    steps: list[int] = []
    run = engine._core.runner.run
    engine._core.runner.run = lambda pieces: steps.extend(len(p.tokens) for p in pieces) or run(pieces)  # type: ignore[method-assign]
    assert engine.run(Workload("decode", 1, 128), 0) > 0
    assert steps == [1, 1]  # the opening after the base, and one step
    engine._core.check()


def test_the_clock_calls_as_often_as_it_is_asked_to() -> None:
    calls: list[int] = []
    assert len(Clock.of(CPU, 3).samples(lambda: calls.append(1))) == len(calls) == 3
