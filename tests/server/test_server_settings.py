from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perilune.builtin import model_path
from perilune.errors import ConfigError
from perilune.server.app import model_name
from perilune.server.config import ServerConfig
from perilune.server.parsers import Parsers
from perilune.text.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1}, {"port": 65536}, {"max_body_bytes": 0}, {"body_seconds": 0}, {"drain_seconds": -1},
        {"served_model_names": ("",)}, {"api_keys": ("",)}, {"cache_isolation": "user", "api_keys": ("k",)},
        {"cache_isolation": "key"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_a_setting_out_of_range_is_a_config_error(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**wrong)


def test_api_keys_do_not_show_in_a_printed_config() -> None:
    assert "secret" not in repr(ServerConfig(api_keys=("secret",)))


def test_a_parser_that_does_not_exist_names_the_nearest() -> None:
    tokenizer = load_tokenizer(model_path())
    for config in (ServerConfig(tool_parser="kimi_k3"), ServerConfig(reasoning_parser="kimi_k3")):
        with pytest.raises(ConfigError, match="Did you mean 'kimi_k2'"):
            Parsers.choose(config, "kimi_linear", tokenizer, None)


def test_parsers_follow_the_model_unless_a_flag_says_otherwise() -> None:
    tokenizer = load_tokenizer(model_path())
    assert Parsers.choose(ServerConfig(), "kimi_linear", tokenizer, None).tools == "kimi_k2"
    assert Parsers.choose(ServerConfig(tool_parser="none"), "kimi_linear", tokenizer, None).tools is None
    assert Parsers.choose(ServerConfig(tool_parser="glm47"), "kimi_linear", tokenizer, None).tools == "glm47"
    assert Parsers.choose(ServerConfig(), "kimi_linear", None, None) == Parsers(None, None)


def test_the_served_name_never_tells_where_a_model_lies(tmp_path: Path) -> None:
    (tmp_path / "Kimi-Tiny").mkdir()
    assert model_name(str(tmp_path / "Kimi-Tiny")) == "Kimi-Tiny"
    assert model_name("moonshotai/Kimi-Linear-48B-A3B-Instruct") == "moonshotai/Kimi-Linear-48B-A3B-Instruct"


def test_the_server_process_never_imports_torch_or_the_grammar_compiler() -> None:
    code = "import sys, perilune.server.run; print(sorted({'torch', 'xgrammar'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
