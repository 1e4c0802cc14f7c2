"""Other engines as children: a real process, a real port, each way to fail, and a clean end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perilune.deploy.catalog import recipe
from perilune.deploy.child import Watch, run
from perilune.deploy.failures import Ended, EngineFailedError, classify, known_failures
from perilune.deploy.launch import Asked, Launch, resolve
from perilune.deploy.points import point_of
from perilune.deploy.serving import _replaced
from perilune.errors import ConfigError

ENGINE = Path(__file__).with_name("engine.py")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(how: str, port: int) -> Launch:
    found = recipe("*/cpu/llama.cpp").model_copy(update={"program": (sys.executable, str(ENGINE), how)})
    asked = Asked(checkpoint="model", variables={"ENGINE_WORD": "ahoy"})
    return resolve(found, point_of(found, port=port), asked=asked, address="127.0.0.1")


def failed(how: str, port: int, tmp_path: Path, seconds: float = 60) -> EngineFailedError:
    with pytest.raises(EngineFailedError) as raised:
        run(launch(how, port), Watch(tmp_path / "log", seconds, 1), say=lambda _: None)
    return raised.value


@pytest.mark.parametrize(
    ("how", "kind", "fix"),
    [
        ("memory", "out of memory", "--max-context"),
        ("kernel", "missing kernel", "aiter-off"),
        ("tokenizer", "tokenizer", "patch_tokenizer"),
        ("flag", "flag", "recipe explain"),
        ("port", "port", "--port"),
        ("files", "open files", "ulimit"),
        ("fault", "page fault", "linux-firmware"),
        ("vocabulary", "vocabulary", "converted with its tokenizer"),
        ("assertion", "assertion", "another build"),
        ("crash", "crash", "Read the log"),
        ("segfault", "crash", "Read the log"),
        ("killed", "killed", "--max-context"),
        ("dies", "out of memory", "--max-context"),
    ],
)
def test_each_way_to_fail_is_told_apart_and_helped(how: str, kind: str, fix: str, port: int, tmp_path: Path) -> None:
    error = failed(how, port, tmp_path)
    assert error.kind == kind
    assert fix in error.fix
    assert str(tmp_path / "log") in error.fix
    assert "starting" in (tmp_path / "log").read_text()


def test_earlier_runs_in_the_same_log_do_not_count(port: int, tmp_path: Path) -> None:
    assert failed("memory", port, tmp_path).kind == "out of memory"
    assert failed("crash", port, tmp_path).kind == "crash"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--engine", "llama.cpp", "--kernels", "reference"), "--kernels"),
        (("--target", "cpu"), "--target"),
        (("--engine", "lama.cpp"), "llama.cpp"),
    ],
)
def test_flags_of_the_other_kind_are_refused_and_not_ignored(words: tuple[str, ...], says: str) -> None:
    code = "import sys; sys.modules['torch'] = None; from perilune.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "x.gguf", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("*/cpu/vllm", ("serve", "{checkpoint}")),
        ("*/cpu/llama.cpp", ("--model", "{checkpoint}")),
        ("*/cpu/llama-cpp-python", ("--model", "{checkpoint}")),
    ],
)
def test_another_program_takes_the_place_of_the_executable_alone(name: str, rest: tuple[str, ...]) -> None:
    assert _replaced(recipe(name).program, "/opt/x -m y") == ("/opt/x", "-m", "y", *rest)


def test_a_signal_is_named(port: int, tmp_path: Path) -> None:
    assert "SIGSEGV" in failed("segfault", port, tmp_path).what


def test_an_engine_that_never_answers_is_stopped_and_called_a_timeout(port: int, tmp_path: Path) -> None:
    error = failed("hang", port, tmp_path, seconds=1)
    assert error.kind == "timeout"
    assert "--ready-seconds" in error.fix


def test_a_taken_port_is_known_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        error = failed("serve", taken.getsockname()[1], tmp_path)
    assert error.kind == "port"
    assert not (tmp_path / "log").exists()


def test_a_program_that_is_not_there_says_what_to_install(port: int, tmp_path: Path) -> None:
    found = launch("serve", port)
    missing = resolve(
        found.recipe.model_copy(update={"program": ("/nowhere/engine",)}), found.point, asked=Asked(checkpoint="m")
    )
    with pytest.raises(ConfigError, match="--engine-program"):
        run(missing, Watch(tmp_path / "log"))


@pytest.mark.parametrize("how", ["serve", "stubborn", "family"])
def test_a_stop_leaves_nothing_running(how: str, port: int, tmp_path: Path) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("serving"):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()

    assert run(launch(how, port), Watch(tmp_path / "log", 60, 0.5), say=say) == 0
    assert said[-1] == "stopping"
    assert "ahoy" in (tmp_path / "log").read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    for pid in re.findall(r"worker (\d+)", (tmp_path / "log").read_text()):
        wait_gone(int(pid))


def wait_gone(pid: int) -> None:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"{pid} is still there")


def test_the_first_cause_wins_over_what_follows_from_it(tmp_path: Path) -> None:
    log = "OSError: [Errno 24] Too many open files\ntorch.OutOfMemoryError: HIP out of memory"
    assert classify(Ended(1, log, tmp_path)).kind == "open files"


def test_an_empty_log_is_no_surprise(tmp_path: Path) -> None:
    error = classify(Ended(1, "", tmp_path / "log"))
    assert error.kind == "crash"
    assert "nothing was written" in error.why


@pytest.mark.parametrize("failure", known_failures(), ids=lambda failure: failure.kind)
def test_every_pattern_compiles_and_has_a_fix(failure) -> None:
    assert re.compile(failure.pattern)
    assert failure.fix
    assert failure.why


def test_serve_shows_the_plan_and_the_command_before_it_starts(port: int, tmp_path: Path) -> None:
    """The whole command, with a program of its own in the recipe's place."""
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"GGUF")
    code = "from perilune.cli.app import main; main()"
    words = [
        "serve", str(gguf), "--engine", "llama.cpp", "--target", "cpu", "--port", str(port),
        "--engine-program", f"{sys.executable} {ENGINE} serve", "--engine-log", str(tmp_path / "log"),
    ]  # fmt: skip
    child = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        lines.append(line.strip())
        if line.startswith("serving"):
            break
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 0
    shown = "\n".join(lines)
    assert shown.index("plan:") < shown.index("--ctx-size 4096") < shown.index("serving model")
    assert str(gguf) in shown
