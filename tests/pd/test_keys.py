"""One secret per cluster: where it may come from, and how a request over HTTP shows that its sender has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.errors import ConfigError
from perilune.pd.keys import KEY_VARIABLE, ClusterKey

KEY = ClusterKey(b"0123456789abcdef")
PATH, BODY = "/v1/completions", b'{"prompt": "x"}'


def test_a_stamp_names_the_digest_of_the_body_it_was_made_for() -> None:
    stamp = KEY.stamp("POST", PATH, BODY)
    assert KEY.stamped("POST", PATH, stamp) == stamp.split(".")[0]


def test_a_stamp_is_for_one_method_one_path_and_one_cluster() -> None:
    stamp = KEY.stamp("POST", PATH, BODY)
    assert KEY.stamped("GET", PATH, stamp) is None
    assert KEY.stamped("POST", PATH + "/", stamp) is None
    assert ClusterKey(b"0123456789abcdeg").stamped("POST", PATH, stamp) is None


@given(st.text(max_size=140))
def test_nothing_else_is_a_stamp(text: str) -> None:
    assert KEY.stamped("POST", PATH, text) is None


def test_a_key_comes_from_a_file_or_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert ClusterKey.load() is None
    monkeypatch.setenv(KEY_VARIABLE, "0123456789abcdef")
    file = tmp_path / "key"
    file.write_text("another secret, of a file\n")
    by_environment, by_file = ClusterKey.load(), ClusterKey.load(str(file))
    assert by_environment is not None
    assert by_file is not None
    assert by_environment.name == KEY.name
    assert by_file.name == ClusterKey(b"another secret, of a file").name  # an editor's last newline is not part of it


def test_a_missing_file_and_a_short_secret_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        ClusterKey.load(str(tmp_path / "none"))
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ConfigError, match="5 bytes"):
        ClusterKey.load()
