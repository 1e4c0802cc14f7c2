"""A measuring process: its answers, its errors, and what is heard when it dies."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from peers.agreement import compare
from peers.children import Child, MeasureError
from peers.protocol import peak_bytes
from peers.session import run
from peers.workloads import Workload

ENGINE = """
    import os, sys
    import numpy as np
    from peers.protocol import serve

    class Toy:
        about = "a toy"
        def __init__(self, model):
            print("noise that no reader may see")
            os.write(1, b"noise from below python\\n")
            if model == "broken":
                raise FileNotFoundError(model)
            self.model = model
        def prefill(self, tokens, depth, seed):
            return tokens / 1000 + depth
        def decode(self, tokens, depth, sequences, seed):
            if depth == 13:
                sys.stderr.write("thirteen is too much for me")
                sys.stderr.flush()
                os._exit(3)
            return tokens * sequences
        def logits(self, tokens):
            return np.eye(3, dtype=np.float32)[tokens]
        def report(self):
            return {"model": self.model}

    serve(Toy)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "toy_engine.py").write_text(textwrap.dedent(ENGINE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("the toy", Path(sys.executable), "toy_engine", {}) as made:
        yield made


def test_commands_are_answered_in_turn_whatever_the_engine_prints(child: Child, tmp_path: Path) -> None:
    assert child.ask("load", model="m")["seconds"] >= 0
    assert run(child, Workload("prefill", 512, 2), 0) == 2.512
    assert run(child, Workload("first token", 100), 0) == 0.1
    assert run(child, Workload("decode", 8, 0, 4), 0) == 32
    child.ask("logits", tokens=[2, 0], file=str(tmp_path / "x.npy"))
    assert np.load(tmp_path / "x.npy").tolist() == [[0, 0, 1], [1, 0, 0]]
    state = child.ask("state")
    assert (state["about"], state["model"]) == ("a toy", "m")
    assert state["peak_bytes"] > 1 << 20


def test_a_failure_is_told_with_its_reason(child: Child) -> None:
    with pytest.raises(MeasureError, match=r"the toy could not load: FileNotFoundError: broken"):
        child.ask("load", model="broken")


def test_a_death_is_told_with_the_last_words(child: Child) -> None:
    child.ask("load", model="m")
    with pytest.raises(MeasureError, match=r"(?s)the toy ended with status 3.*thirteen is too much"):
        run(child, Workload("decode", 1, 13), 0)
    with pytest.raises(MeasureError, match="ended"):
        child.ask("state")


def test_peak_memory_is_the_high_water_mark(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert peak_bytes(status) == 2 << 20


def test_engines_agree_within_noise_and_not_with_another_model() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 100))
    assert compare(a, a + 0.02 * rng.normal(size=a.shape), "two").quartile < 0.03
    tipped = a.copy()
    tipped[:20] = rng.normal(size=(20, 100))  # the router chose others in half of the rows
    assert compare(a, tipped, "two").same_best == 0.5
    with pytest.raises(MeasureError, match="two do not compute the same model"):
        compare(a, rng.normal(size=a.shape), "two")
    with pytest.raises(MeasureError):
        compare(a, np.full_like(a, np.nan), "two")
