"""Which kernel a GPU was running when it stopped: launched by itself, in a recorded step, or between the two."""

from __future__ import annotations

import re

import pytest
import torch
from stuck_gpu import Graph, Queue

from perilune.errors import EngineDeadError
from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.launch import Gpu, Launch
from perilune.ops.gpu.tiles import Tile
from perilune.ops.gpu.trail import Trail
from perilune.ops.gpu.watch import STRIDE, Watch
from perilune.ops.norm import kernels

CPU = torch.device("cpu")


def launch(form: str) -> Launch:
    return Launch(kernels.rms_norm, form, (), {}, Tile({}))


def watched(queue: Queue, each: bool, forms: tuple[str, ...] = ("first", "second", "third")) -> Watch:
    watch = Watch(0.01, queue.mark, Trail.on(Gpu(ARCHES["sm_90"]), CPU), each)
    for form in forms:
        watch.starts(launch(form), ARCHES["sm_90"])
        watch.launched(launch(form))
    return watch


def test_a_kernel_that_hangs_is_named() -> None:
    with pytest.raises(EngineDeadError, match=r"GPU was running norm\.rms_norm \(second\)\. It did not answer"):
        watched(Queue(done=1), each=True).wait("a step")


def test_a_gpu_that_fails_ends_the_engine_with_its_words() -> None:
    with pytest.raises(EngineDeadError, match=r"rms_norm \(first\) or one after it\. an illegal address"):
        watched(Queue(0, "an illegal address\nand more"), each=True).wait("a step")


def test_a_step_without_a_kernel_is_called_what_it_is() -> None:
    with pytest.raises(EngineDeadError, match="GPU was running a copy"):
        watched(Queue(done=0), each=False, forms=()).wait("a copy")


@pytest.mark.parametrize("done", [0, 1, 2])
def test_without_a_mark_after_each_the_few_that_can_be_it_are_named(done: int) -> None:
    count = 2 * STRIDE + 3
    watch = watched(Queue(done), each=False, forms=tuple(map(str, range(count))))
    first, last = done * STRIDE + 1, min((done + 1) * STRIDE, count)
    named = ", ".join(f"norm.rms_norm ({i - 1})" for i in range(first, last + 1))
    with pytest.raises(
        EngineDeadError, match=re.escape(f"one of kernels {first} to {last} of a step's {count}: {named}")
    ) as caught:
        watch.wait("a step")
    assert "--eager" in caught.value.fix


def test_what_is_done_is_forgotten() -> None:
    queue = Queue(done=4)
    watch = watched(queue, each=True)
    watch.wait("a step")
    with pytest.raises(EngineDeadError, match="running the next"):
        watch.wait("the next")


COUNT = STRIDE + 5


class Norms:
    """A recorded step of COUNT norms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stride: int = STRIDE) -> None:
        self.gpu, self.queue = Gpu(ARCHES["sm_90"]), Queue()
        self.watch = Watch(0.01, self.queue.mark, Trail.on(self.gpu, CPU), each=False, stride=stride)
        self.gpu.listeners.append(self.watch)
        self.graph = Graph(monkeypatch, self.queue)
        self.replay = self.watch.follows(self.graph)(self._step)

    def _step(self) -> str:
        row = torch.ones(64, dtype=torch.bfloat16)
        for index in range(COUNT):
            more = {"tile": self.gpu.tile("rms_norm"), "form": str(index), "DIM": 64}
            self.gpu.launch(kernels.rms_norm, (1,), row, row, row.clone(), 64, 64, 1e-5, **more)
        return "rows"


@pytest.mark.parametrize("hanging", [0, 1, STRIDE - 1, STRIDE, COUNT - 1])
def test_a_recorded_step_that_hangs_names_a_few_and_the_one_is_among_them(
    monkeypatch: pytest.MonkeyPatch, hanging: int
) -> None:
    norms = Norms(monkeypatch)
    assert len(norms.graph.calls) == COUNT + 2, "the step's own, a mark between and one at the end"
    norms.graph.until = len(norms.graph.calls)
    for _ in range(2):
        assert norms.replay() == "rows"
        norms.watch.wait("a step")
    norms.graph.until = norms.graph.own[hanging][0]  # those before it are done
    norms.replay()
    first, last = (1, STRIDE) if hanging < STRIDE else (STRIDE + 1, COUNT)
    with pytest.raises(EngineDeadError, match=f"one of kernels {first} to {last} of a step's {COUNT}: ") as caught:
        norms.watch.wait("a step")
    assert re.findall(r"rms_norm \((\d+)\)", caught.value.what) == [str(i - 1) for i in range(first, last + 1)]


@pytest.mark.parametrize("hanging", [0, 1, COUNT - 1])
def test_with_a_mark_after_each_a_recorded_step_that_hangs_names_the_one(
    monkeypatch: pytest.MonkeyPatch, hanging: int
) -> None:
    norms = Norms(monkeypatch, stride=1)
    norms.graph.until = norms.graph.own[hanging][0]
    norms.replay()
    with pytest.raises(EngineDeadError, match=rf"The GPU was running norm\.rms_norm \({hanging}\)\."):
        norms.watch.wait("a step")


def test_what_is_launched_after_a_recorded_step_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = Norms(monkeypatch)
    norms.graph.until = len(norms.graph.calls)
    norms.replay()
    norms.watch.launched(launch("head"))
    norms.queue.done = 0
    with pytest.raises(EngineDeadError, match=r"was running norm\.rms_norm \(head\)\."):
        norms.watch.wait("a step")


def test_a_recorded_step_that_fails_is_looked_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = Norms(monkeypatch)
    norms.graph.until = norms.graph.own[STRIDE + 2][0]
    norms.replay()
    norms.queue.broken = "an illegal address"
    with pytest.raises(EngineDeadError, match=f"one of kernels {STRIDE + 1} to {COUNT} of a step's"):
        norms.watch.wait("a step")
