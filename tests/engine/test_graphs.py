"""Decode steps with inputs of their own and padding: what a graph records, run again instead of replayed."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_gpu import use_small_gpu
from stuck_gpu import Graph, Queue
from torch import Tensor

from perilune.cache.budget import plan_cache
from perilune.cache.geometry import CacheGeometry
from perilune.engine.graphs import DecodeSteps, again, decode_sizes
from perilune.engine.runner import Runner
from perilune.errors import EngineDeadError
from perilune.models.checkpoint import Checkpoint
from perilune.nn.batch import Batch, Piece
from perilune.nn.decoder import Decoder, Entry
from perilune.ops.gpu.kernels import leave
from perilune.ops.gpu.launch import Gpu
from perilune.ops.gpu.trail import Trail
from perilune.ops.gpu.watch import STRIDE, Watch

CPU = torch.device("cpu")


class Views:
    """The arenas of a whole model, for a decoder of some of its layers."""

    def __init__(self, runner: Runner, layers: tuple[int, ...]) -> None:
        self._arenas, self._layers = runner.arenas, layers

    def pages(self, layer: int) -> Tensor:
        return self._arenas.pages(self._layers[layer])

    def state(self, layer: int) -> Tensor:
        return self._arenas.state(self._layers[layer])

    def conv(self, layer: int) -> Tensor:
        return self._arenas.conv(self._layers[layer])


@pytest.fixture(autouse=True)
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_gpu(monkeypatch)


def opened(golden: Path, layers: tuple[int, ...]) -> tuple[Runner, Decoder, Views]:
    """A KDA and an MLA layer on the GPU's kernels, interpreted; arenas full of noise."""
    checkpoint = Checkpoint.open(golden / "kimi_linear_w4a16")
    checkpoint.check()
    plan = plan_cache(CacheGeometry.of(checkpoint.spec, "bfloat16"), 200, 4, snapshots=1)
    runner = Runner(checkpoint, "bfloat16", plan, "triton")
    runner.arenas.page_arena.tensor.normal_()
    for layer in checkpoint.spec.kda_layers:
        runner.arenas.state(layer).normal_()
        runner.arenas.conv(layer).normal_()
    whole = runner._decoder
    spec = dataclasses.replace(whole.spec, layers=tuple(whole.spec.layers[i] for i in layers))
    weights = dataclasses.replace(whole.weights, layers=tuple(whole.weights.layers[i] for i in layers))
    return runner, dataclasses.replace(whole, spec=spec, weights=weights), Views(runner, layers)


def decoding(*rows: tuple[int, int, list[int]]) -> list[Piece]:
    return [Piece((7 + slot,), start, slot, pages, "decode") for slot, start, pages in rows]


def test_a_padded_step_is_the_eager_one_and_padding_writes_nothing(golden: Path) -> None:
    runner, decoder, views = opened(golden, (0, 3))
    memory = (runner.arenas.page_arena.tensor, runner.arenas.slot_arena.buffer)
    steps = DecodeSteps(decoder.enter, partial(decoder.through, cache=views), (4,), 200, CPU, again)
    pieces = decoding((2, 64, [5, 1]), (0, 3, [0]), (3, 190, [2, 7, 4]))
    assert steps.take(pieces)
    before = [tensor.clone() for tensor in memory]
    expected = decoder(Batch.build(pieces), views)
    after = [tensor.clone() for tensor in memory]
    for tensor, kept in zip(memory, before, strict=True):
        tensor.copy_(kept)
    torch.testing.assert_close(steps.run(pieces).float(), expected.float(), rtol=0.02, atol=0.02)
    for tensor, wanted, kept in zip(memory, after, before, strict=True):
        same = tensor.view(torch.uint8) == kept.view(torch.uint8)
        untouched = wanted.view(torch.uint8) == kept.view(torch.uint8)
        assert bool((same | ~untouched).all()), "padding has written"
        assert not bool(same.all()), "the step has written nothing"


def test_a_step_of_another_size_or_with_other_pages_starts_from_its_own_inputs(golden: Path) -> None:
    _, decoder, views = opened(golden, (3,))  # latents only: rows that were written once are written again alike
    steps = DecodeSteps(decoder.enter, partial(decoder.through, cache=views), (1, 3), 200, CPU, again)
    for pieces in (
        decoding((0, 130, [1, 2, 3])),
        decoding((0, 70, [4, 5]), (1, 1, [0])),
        decoding((0, 71, [4, 3])),
    ):
        expected = decoder(Batch.build(pieces), views)
        torch.testing.assert_close(steps.run(pieces).float(), expected.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "piece",
    [
        Piece((1, 2), 3, 0, [0], "decode"), Piece((1,), 0, 0, [0], "prefill"),
        Piece((1,), 3, 0, [0], "decode", logits="none"),
    ],
    ids=["a repeated token", "a prompt", "no logits"],
)  # fmt: skip
def test_other_steps_are_not_taken(piece: Piece) -> None:
    def enter(batch: Batch) -> Entry:
        return Entry(torch.zeros(len(batch.lengths), 1), {})

    steps = DecodeSteps(enter, lambda entry, batch: entry.h, (1, 2), 64, CPU, again)
    plain = Piece((1,), 3, 1, [0], "decode")
    assert steps.take([plain])
    assert not steps.take([plain, piece])
    assert not steps.take([])
    assert not steps.take([plain] * 3)


@given(st.integers(1, 300))
def test_sizes_reach_the_most_and_waste_at_most_half_or_seven_rows(most: int) -> None:
    sizes = decode_sizes(most)
    assert sizes[-1] == most
    assert list(sizes) == sorted(set(sizes))
    for count in range(1, most + 1):
        size = next(size for size in sizes if size >= count)
        assert size - count <= 7


@pytest.mark.parametrize("hanging", [0, 45, -1])
def test_a_recorded_step_of_a_whole_model_that_hangs_names_the_kernel_among_a_few(
    golden: Path, monkeypatch: pytest.MonkeyPatch, hanging: int
) -> None:
    """Of its kernels none is run, since that takes long; the trail is written as far as the GPU comes."""
    checkpoint = Checkpoint.open(golden / "kimi_linear")
    plan = plan_cache(CacheGeometry.of(checkpoint.spec, "bfloat16"), 128, 2, snapshots=1)
    runner = Runner(checkpoint, "bfloat16", plan, "triton")
    gpu, queue, run = runner.selection.gpu, Queue(), Gpu._run
    assert gpu is not None
    monkeypatch.setattr(Gpu, "_run", lambda *args: run(*args) if args[1] is leave else None)
    runner._watch = Watch(0.01, queue.mark, Trail.on(gpu, CPU))
    gpu.listeners.append(runner._watch)
    graph = Graph(monkeypatch, queue)
    runner.record((2,), 128, graph)
    runner.settle()
    graph.until = len(graph.calls)
    runner.run(decoding((0, 4, [0]), (1, 69, [1, 2])))
    runner.wait("a step")
    graph.until, name = graph.own[hanging]
    runner.run(decoding((0, 5, [0]), (1, 70, [1, 2])))
    with pytest.raises(EngineDeadError, match="one of kernels") as caught:
        runner.wait("a step")
    [[first, last]] = re.findall(rf"kernels (\d+) to (\d+) of a step's {len(graph.own)}: ", caught.value.what)
    assert int(first) <= hanging % len(graph.own) + 1 <= int(last) < int(first) + STRIDE
    assert name in caught.value.what
