"""`perilune recipe` as a program."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

RUN = "import sys; sys.modules['torch'] = None; from perilune.cli.app import main; main()"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, "recipe", *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_ls_lists_and_show_prints_a_command_a_shell_can_split() -> None:
    listed = run("ls")
    assert listed.returncode == 0, listed.stderr
    shown = run("show", "kimi-k2.5-int4/mi355x/vllm")
    words = shlex.split(shown.stdout)
    assert words[words.index("--compilation-config") + 1] == '{"pass_config":{"fuse_allreduce_rms":false}}'
    data = json.loads(run("show", "kimi-k2.5-int4/mi355x/vllm", "--json").stdout)
    assert data["argv"][:2] == ["vllm", "serve"]
    assert {rule["answer"] for rule in data["rules"]} <= {"yes", "no", "unknown"}


def test_explain_gives_reasons_sources_and_what_was_left_out() -> None:
    text = run("explain", "kimi-linear-48b-int4/strix-halo/vllm").stdout
    text = " ".join(text.split())
    for word in ("30 GB", "aiter-off", "github.com/kyuz0", "left out", "was not looked"):
        assert word in text


def test_diff_shows_only_what_differs() -> None:
    lines = run("diff", "kimi-linear-48b/mi300x/vllm", "kimi-linear-48b/mi355x/vllm").stdout.splitlines()
    assert lines == ["they start the same"]
    lines = run("diff", "kimi-k2.5-int4/mi300x/vllm", "kimi-k2.5-int4/mi355x/vllm").stdout.splitlines()
    assert lines == [
        "+ --moe-backend flydsl", '+ --compilation-config {"pass_config":{"fuse_allreduce_rms":false}}'
    ]  # fmt: skip


@pytest.mark.parametrize("words", [("show",), ("diff", "a"), ("show", "a/b/c"), ("diff", "a", "b", "c")])
def test_wrong_calls_end_with_a_reason(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
