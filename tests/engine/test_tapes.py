"""Decode steps recorded as tapes against the same engine without: the same bits, whoever joins and leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.graphs import TapeCapture
from perilune.engine.messages import Submit
from perilune.engine.request import SamplingParams
from perilune.nn.batch import Piece
from perilune.ops.native import Native

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")


@pytest.fixture(autouse=True)
def needs_kernels() -> None:
    if isinstance(reason := Native.load(), str):
        pytest.skip(reason)


def opened(path: Path, **settings: Any) -> EngineCore:
    given = {"dtype": "bfloat16", "max_context": 320, "max_running": 17, **settings}
    return EngineCore(EngineConfig.of(str(path), **given), path)


def text(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 200, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def served(core: EngineCore) -> list[tuple[str, object]]:
    """Everything that comes out of an engine that 1, 2, 3, 8 and 17 sequences share in turn.

    Contexts cross pages at different steps; some begin alike, so that they are found in the cache; sequences end, and
    join while others decode.
    """
    base, events = text(128, 1), list[tuple[str, object]]()
    sizes = set[int]()

    def add(name: int, prompt: tuple[int, ...], new: int) -> None:
        params = SamplingParams(max_tokens=new, temperature=0.8 * (name % 2), ignore_eos=True, logprobs=2)
        core.add(Submit(str(name), prompt, params, seed=name))

    def run(steps: int) -> None:
        for _ in range(steps):
            for event in core.step():
                assert event.error is None, event.error
                events.append((event.id, (event.token, event.cached_tokens)))
            sizes.add(len(core.scheduler.running))

    add(0, text(61, 2), 60)
    run(6)
    add(1, (*base, *text(3, 3)), 60)
    run(4)
    add(2, (*base, *text(61, 4)), 60)
    run(3)
    for name in range(3, 8):
        add(name, text(60 + name, name), 20 + name)
    run(4)
    for name in range(8, 17):
        add(name, (*base, *text(name, name)), 6 + name % 3)
    while core.busy:
        run(1)
        core.check()
    assert {1, 2, 3, 8, 17} <= sizes
    return events


@pytest.mark.parametrize("model", MODELS)
def test_a_recorded_engine_has_the_bits_of_an_eager_one(model: str, golden: Path) -> None:
    recorded, eager = opened(golden / model), opened(golden / model, eager=True)
    assert any("recorded when they first come" in line for line in recorded.because)
    assert not any("recorded" in line for line in eager.because)
    assert served(recorded) == served(eager)


def test_so_has_one_with_8_bit_weights(golden: Path) -> None:
    assert served(opened(golden / "glm4_moe_lite", weight_bits="8")) == served(
        opened(golden / "glm4_moe_lite", weight_bits="8", eager=True)
    )


def test_so_has_one_whose_head_is_its_embedding(golden: Path, tmp_path: Path) -> None:
    source = golden / "kimi_linear"
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = {name: tensor for file in source.glob("model-*.safetensors") for name, tensor in load_file(file).items()}
    kept = {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}
    save_file(kept, tmp_path / "model.safetensors")
    assert opened(tmp_path).spec.tied_embedding
    assert served(opened(tmp_path)) == served(opened(tmp_path, eager=True))


class Torch(TorchDispatchMode):
    """What torch writes meanwhile: everything but views and empty memory."""

    def __init__(self) -> None:
        super().__init__()
        self.wrote: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), str(func).split(".")[1]
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        outs = [each for each in (out if isinstance(out, list | tuple) else [out]) if isinstance(each, torch.Tensor)]
        if name.endswith("_") or any(each.untyped_storage().data_ptr() not in given for each in outs):
            self.wrote.add(name)
        return out


@pytest.mark.parametrize("model", MODELS)
def test_between_entry_and_head_a_decode_step_asks_torch_for_views_only(model: str, golden: Path) -> None:
    """Whatever else it computed would not be computed again."""
    core = opened(golden / model, max_running=2)
    pieces = [Piece((5,), 70, slot, [0, 1 + slot], "decode") for slot in range(2)]
    decoder, arenas = core.runner._decoder, core.runner.arenas  # type: ignore[union-attr]
    steps = core.runner._recorded  # type: ignore[union-attr]
    assert steps is not None
    steps._fill(pieces, 2)
    batch = steps._batch(2)
    entry = decoder.enter(batch)
    with Torch() as torch_:
        decoder.through(entry, batch, arenas)
    assert torch_.wrote <= {"empty"}


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"kernels": "reference"}])
def test_what_is_computed_elsewhere_is_not_recorded(golden: Path, settings: dict[str, object]) -> None:
    core = opened(golden / "glm4_moe_lite", max_running=1, **settings)
    try:
        assert not any("recorded" in line for line in core.because)
    finally:
        core.close()


def test_a_step_that_failed_while_it_was_recorded_is_recorded_the_next_time(golden: Path) -> None:
    core = opened(golden / "kimi_linear", max_running=2)
    native = core.runner.selection.native
    assert native is not None
    good = [Piece((5,), 3, slot, [0], "decode") for slot in range(2)]
    with pytest.raises(ValueError, match="two sequences in one slot"):
        core.runner.run([good[0], good[0]])
    for _ in range(2):
        assert bool(core.runner.run(good).isfinite().all())
        with pytest.raises(ValueError, match="two sequences in one slot"):
            core.runner.run([good[0], good[0]])


def test_tapes_of_all_sizes_share_a_few_buffers(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captures = []
    monkeypatch.setattr(TapeCapture, "__init__", _spied(captures))
    core = opened(golden / "kimi_linear")
    for count in range(1, 18):
        core.runner.run([Piece((5,), 3, slot, [slot], "decode") for slot in range(count)])
    [capture] = captures
    widest = max(w.shape[-2] for w in core.runner._decoder.weights.matrices())  # type: ignore[union-attr]
    assert 0 < capture._results.nbytes < 40 * 17 * widest * 4


def _spied(captures: list[TapeCapture]) -> Any:
    made = TapeCapture.__init__

    def spied(self: TapeCapture, native: Native) -> None:
        made(self, native)
        captures.append(self)

    return spied
