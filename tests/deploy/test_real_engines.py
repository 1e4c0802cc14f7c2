"""Other engines for real, where they are installed: `perilune serve` starts them, `perilune smoke` asks, directly
and through `perilune route`, a signal ends.

PERILUNE_VLLM=/venv/bin/vllm; PERILUNE_LLAMA_SERVER=/path/llama-server;
PERILUNE_LLAMA_CPP_PYTHON="/venv/bin/python -m llama_cpp.server". These two serve a tiny dense model, or PERILUNE_GGUF,
which must have a vocabulary. Minutes: -m slow.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from tiny_gguf import write_tiny

pytestmark = pytest.mark.slow
RUN = (sys.executable, "-c", "from perilune.cli.app import main; main()")


def served(model: Path | str, engine: str, program: str, log: Path, *more: str) -> str:
    """What `smoke` printed, of the engine and of a router in front of it. The engine's environment is not ours: another
    venv finds its own packages.
    """
    port, front = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(words(model, engine, program, port, log, *more), log):
        said = smoke(url)
        with serving(["route", "--contract", "openai-plain", "--worker", url, "--port", front], log):
            assert outcomes(smoke(f"http://127.0.0.1:{front}")) == outcomes(said)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0
    return said


def words(model: Path | str, engine: str, program: str, port: str, log: Path, *more: str) -> list[str]:
    """`perilune serve` of another engine, as it is typed."""
    host = ["--target", "cpu", "--port", port, "--max-context", "512", "--ready-seconds", "240"]
    child = ["--engine-program", program, "--engine-log", str(log), "--engine-env", "PYTHONPATH="]
    return ["serve", str(model), "--engine", engine, *host, *child, *more]


@contextmanager
def serving(command: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([*RUN, *command], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert any(line.startswith("serving") for line in child.stdout), log.read_text()[-2000:]
    yield child
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0


def smoke(url: str) -> str:
    done = subprocess.run([*RUN, "smoke", url], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def outcomes(said: str) -> list[list[str]]:
    """What was checked and how it went, without what the model happened to say."""
    return [line.split()[:2] for line in said.splitlines() if line.startswith(("ok", "no", "failed"))]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def need(*names: str) -> list[str]:
    found = [os.environ.get(name) for name in names]
    if not all(found):
        pytest.skip(f"needs {' and '.join(names)}")
    return [value or "" for value in found]


def tiny(folder: Path) -> Path:
    """A dense model of 2 layers with random weights and a tokenizer of single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "Say", "hello", *(chr(code) for code in range(33, 127))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_vllm(tmp_path: Path) -> None:
    (program,) = need("PERILUNE_VLLM")
    said = served(tiny(tmp_path / "tiny"), "vllm", program, tmp_path / "log", "--engine-arg=--enforce-eager")
    assert "ok  streaming" in said


def test_two_vllm_workers_behind_a_router_share_the_work_and_one_goes_on_alone(tmp_path: Path) -> None:
    (program,) = need("PERILUNE_VLLM")
    model, ports, front = tiny(tmp_path / "tiny"), (free_port(), free_port()), free_port()
    more = ("--engine-arg=--enforce-eager", "--engine-env", "VLLM_CPU_KVCACHE_SPACE=1")
    url, logs = f"http://127.0.0.1:{front}", [tmp_path / f"log{port}" for port in ports]
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(serving(words(model, "vllm", program, port, log, *more), log))
            for port, log in zip(ports, logs, strict=True)
        )
        workers = [word for port in ports for word in ("--workers", f"http://127.0.0.1:{port}")]
        stack.enter_context(serving(["route", "--contract", "openai-plain", *workers, "--port", front], logs[0]))
        assert "ok  streaming" in smoke(url)
        body = {"model": "model", "prompt": "Say hello", "max_tokens": 64, "temperature": 0, "ignore_eos": True}
        with httpx.Client(base_url=url, timeout=120) as http, ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: http.post("/v1/completions", json=body), range(16)))
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
            routes = {answer.headers["x-perilune-route"].split()[0] for answer in answers}
            assert routes == {"decode=w0", "decode=w1"}
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0
            answers = [http.post("/v1/completions", json=body) for _ in range(4)]
            assert [answer.headers["x-perilune-route"].split()[0] for answer in answers] == ["decode=w0"] * 4
            assert {answer.status_code for answer in answers} == {200}
        assert first.poll() is None


@pytest.mark.parametrize(
    ("engine", "variable", "last"),
    [
        ("llama.cpp", "PERILUNE_LLAMA_SERVER", "ok  streaming"),
        # llama-cpp-python 0.3 leaves usage out of its streams.
        ("llama-cpp-python", "PERILUNE_LLAMA_CPP_PYTHON", "ended without usage"),
    ],
)
def test_llama_cpp(engine: str, variable: str, last: str, tmp_path: Path) -> None:
    (program,) = need(variable)
    said = served(
        os.environ.get("PERILUNE_GGUF") or write_tiny(tmp_path / "tiny.gguf"), engine, program, tmp_path / "log"
    )
    assert "ok  chat/completions" in said
    assert last in said


def test_a_gguf_without_a_vocabulary_is_told_as_that(tmp_path: Path) -> None:
    (program,) = need("PERILUNE_LLAMA_SERVER")
    gguf, port = write_tiny(tmp_path / "tiny.gguf", vocabulary=False), free_port()
    command = [*RUN, *words(gguf, "llama.cpp", program, port, tmp_path / "log")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert any(line.startswith("serving") for line in child.stdout), (tmp_path / "log").read_text()[-2000:]
    assert "broke" in smoke(f"http://127.0.0.1:{port}")
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "ended by SIGABRT" in said
    assert "no vocabulary" in said
