"""Which device an engine computes on, and what it says where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perilune import LLM
from perilune.engine import device as devices
from perilune.engine.config import EngineConfig, plan_engine
from perilune.engine.device import Gpus, choose_device, open_device
from perilune.engine.room import fitting
from perilune.errors import ConfigError, UnsupportedError
from perilune.models.checkpoint import Checkpoint

NONE = Gpus((), "torch 2.13.0+cpu is built for processors only")
TWO = Gpus(("GPU A", "GPU B"))


def test_cpu_is_the_cpu_whatever_there_is() -> None:
    assert choose_device("cpu", TWO)[0] == torch.device("cpu")


def test_auto_takes_a_gpu_if_there_is_one_for_every_rank() -> None:
    assert choose_device("auto", TWO) == (torch.device("cuda", 0), "GPU A")
    assert choose_device("auto", TWO, 1, 2) == (torch.device("cuda", 1), "GPU B")
    device, why = choose_device("auto", TWO, 0, 3)
    assert device.type == "cpu"
    assert "2 GPUs for 3 ranks" in why
    assert choose_device("auto", NONE) == (torch.device("cpu"), NONE.why)


def test_every_rank_has_its_own_from_the_one_that_is_named() -> None:
    assert [choose_device("cuda", TWO, rank, 2)[0].index for rank in range(2)] == [0, 1]
    assert choose_device("cuda:1", TWO)[0] == torch.device("cuda", 1)


def test_no_gpu_is_an_error_that_says_why_and_what_helps() -> None:
    with pytest.raises(UnsupportedError, match=r"no GPU.*built for processors only.*ROCm or CUDA.*perilune doctor"):
        choose_device("cuda", NONE)


@pytest.mark.parametrize(
    ("name", "ranks", "missing"), [("cuda:2", 1, "cuda:2"), ("cuda:1", 2, "cuda:2"), ("cuda", 3, "cuda:2")]
)
def test_a_gpu_that_is_not_there_is_named_with_those_that_are(name: str, ranks: int, missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"{missing}\..*cuda:0 GPU A, cuda:1 GPU B"):
        choose_device(name, TWO, 0, ranks)


def test_variables_that_hide_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    with pytest.raises(UnsupportedError, match=r"finds no GPU \(HIP_VISIBLE_DEVICES=-1\)"):
        open_device("cuda")


def test_an_engine_that_cannot_have_its_device_reads_no_weights(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: NONE)
    monkeypatch.setattr("perilune.engine.runner.load_weights", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UnsupportedError, match="no GPU"):
        LLM(str(golden / "glm4_moe_lite"), device="cuda:0")


def test_what_auto_came_to_is_said_at_start(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: NONE)
    with LLM(str(golden / "glm4_moe_lite"), device="auto", max_context=64, max_running=1) as llm:
        assert any(line.startswith("device cpu: torch") for line in llm._core.because)


def test_an_engine_that_does_not_fit_says_what_it_needs_and_what_would_fit(golden: Path) -> None:
    checkpoint = Checkpoint.open(golden / "kimi_linear")
    config = EngineConfig("m", device="cuda", max_context=2048, max_running=512)
    plan = plan_engine(config, checkpoint.spec)
    line = fitting(config, checkpoint, plan, 10**10, "free on cuda:0")
    assert "free on cuda:0" in line
    assert "weights" in line
    for free, says in ((350 << 20, "A cache of .* would fit"), (1 << 20, "weights alone")):
        with pytest.raises(ConfigError, match=says) as caught:
            fitting(config, checkpoint, plan, free, "free on cuda:0")
        assert "cache_bytes" in caught.value.fix


def test_float32_on_the_gpus_kernels_is_refused_by_name(golden: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"No GPU kernel serves linear.*float32.*bfloat16"):
        LLM(str(golden / "glm4_moe_lite"), dtype="float32", kernels="triton", max_context=64, max_running=1)
