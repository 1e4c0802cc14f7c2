"""An engine whose embedding stays in its file answers as one that holds it, and says which it does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.request import SamplingParams
from perilune.models.checkpoint import Checkpoint

PROMPT = tuple(range(1, 150, 2))


def opened(path: Path, dtype: str, *, hold: bool = False) -> EngineCore:
    return EngineCore(EngineConfig.of(str(path), dtype=dtype, max_context=192, hold_embedding=hold), path)


def answer(core: EngineCore, name: str, tokens: tuple[int, ...]) -> list[TokenEvent]:
    core.add(Submit(name, tokens, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True), 0))
    events: list[TokenEvent] = []
    while core.busy:
        events += core.step()
    return events


def one_file(golden: Path, folder: Path, *, tied: bool = False) -> Path:
    """A golden model whose weights lie in one file, without its head if that is the embedding."""
    folder.mkdir()
    tensors = {
        k: v for shard in (golden / "kimi_linear").glob("model*.safetensors") for k, v in load_file(shard).items()
    }
    config = json.loads((golden / "kimi_linear" / "config.json").read_text())
    if tied:
        tensors.pop("lm_head.weight")
        config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_and_tokens_are_those_of_an_engine_that_holds_it(golden: Path, dtype: str) -> None:
    path = golden / "kimi_linear"
    stored, held = opened(path, dtype), opened(path, dtype, hold=True)
    assert torch.equal(stored.logits(PROMPT), held.logits(PROMPT))
    tokens = [[event.token for event in answer(core, "a", PROMPT)] for core in (stored, held)]
    assert tokens[0] == tokens[1]
    assert any("embedding read from its file" in line for line in stored.because)
    assert not any("embedding" in line for line in held.because)
    checkpoint = Checkpoint.open(path)
    assert held.runner.weight_bytes == checkpoint.weight_bytes(dtype)  # type: ignore[union-attr]
    assert stored.runner.weight_bytes == checkpoint.weight_bytes(dtype, leave_embedding=True)  # type: ignore[union-attr]


def test_a_table_that_is_the_head_too_is_held(golden: Path, tmp_path: Path) -> None:
    path = one_file(golden, tmp_path / "tied", tied=True)
    core = opened(path, "bfloat16")
    assert not any("embedding" in line for line in core.because)
    assert core.runner.weight_bytes == Checkpoint.open(path).weight_bytes("bfloat16")  # type: ignore[union-attr]
    shutil.rmtree(path)
    assert len(answer(core, "a", PROMPT)) == 8


def test_weights_that_are_deleted_while_it_runs_are_not_missed(golden: Path, tmp_path: Path) -> None:
    path = one_file(golden, tmp_path / "whole")
    core = opened(path, "bfloat16")
    before = [event.token for event in answer(core, "a", PROMPT)]
    shutil.rmtree(path)
    assert [event.token for event in answer(core, "b", PROMPT)] == before


def test_a_file_cut_short_fails_the_request_by_its_name_and_not_the_engine(golden: Path, tmp_path: Path) -> None:
    path = one_file(golden, tmp_path / "whole")
    core, file = opened(path, "bfloat16"), path / "model.safetensors"
    size = file.stat().st_size
    whole = file.read_bytes()
    os.truncate(file, 8)
    [event] = answer(core, "a", PROMPT)
    assert event.error is not None
    assert "model.safetensors cannot be read" in event.error.error().what
    with file.open("r+b") as again:
        again.write(whole)
    assert file.stat().st_size == size
    assert len(answer(core, "b", PROMPT)) == 8
