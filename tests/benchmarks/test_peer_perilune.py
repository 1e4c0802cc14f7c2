"""perilune's side of the comparison runs the engine itself; the whole script, on a model too small to measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cpu_peers
import pytest
from machine import measure_machine
from peers.perilune_child import Perilune
from peers.slices import Model


@pytest.fixture(scope="module")
def engine(tiny_slice: Path) -> Perilune:
    return Perilune(str(tiny_slice), threads=1, context=512, sequences=4, chunk=64, profile=True)


def test_prefill_after_a_base_computes_only_what_is_new(engine: Perilune) -> None:
    assert engine.prefill(64, depth=128, seed=1) > 0
    ops = engine.report()["ops"]
    assert ops["mla_prefill"][1] == 1  # one MLA layer, one piece of 64: the base came from the cache
    assert engine.prefill(100, depth=0, seed=2) > 0
    assert engine.report()["ops"]["mla_prefill"][1] == 2


@pytest.mark.parametrize(("sequences", "depth"), [(1, 0), (4, 0), (1, 128)])
def test_decode_counts_only_the_steps_asked_for(engine: Perilune, sequences: int, depth: int) -> None:
    assert engine.decode(5, depth=depth, sequences=sequences, seed=3) > 0
    ops = engine.report()["ops"]
    assert ops["the rest"][1] == 5
    assert "kda_prefill" not in ops


def test_nothing_is_left_running(engine: Perilune) -> None:
    engine.decode(3, depth=0, sequences=2, seed=4)
    stats = engine._core.stats()
    assert (stats["running"], stats["waiting"]) == (0, 0)
    engine._core.check()


def test_logits_are_those_of_the_prompt(engine: Perilune) -> None:
    assert engine.logits([1, 2, 3]).shape == (3, 256)


def test_the_script_measures_one_engine_and_writes_json(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cpu_peers.MODELS, "kimi", Model(str(tiny_model), "Tiny", 3, 2))
    monkeypatch.setattr(cpu_peers, "measure_machine", lambda seconds: measure_machine(0.0))
    file = tmp_path / "result.json"
    arguments = ["--only", "perilune", "--quick", "--rows", "first*", "--rows", "decode", "--repeats", "1"]
    where = ["--slices", str(tmp_path / "slices"), "--threads", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["cpu_peers.py", *arguments, *where])
    assert cpu_peers.main() == 0
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == ["first token of 100", "decode"]
    assert all(row["perilune"] > 0 and row["ratio"] is None for row in result["rows"])
    assert result["machine"]["read"] > 0
    assert "Tiny, first 3 layers" in capsys.readouterr().out


def test_a_slice_that_lacks_a_kind_of_layer_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu_peers.py", "--model", "kimi", "--layers", "3", "--threads", "1"])
    assert cpu_peers.main() == 1
    assert "lack a kind of layer: take 4" in capsys.readouterr().err
