"""The two small tokenizers, written once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from vocabularies import loaded, write_glm, write_kimi

from perilune.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def kimi_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kimi(tmp_path_factory.mktemp("kimi"))


@pytest.fixture(scope="session")
def glm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm(tmp_path_factory.mktemp("glm"))


@pytest.fixture(scope="session")
def kimi(kimi_folder: Path) -> Tokenizer:
    return loaded(kimi_folder)


@pytest.fixture(scope="session")
def glm(glm_folder: Path) -> Tokenizer:
    return loaded(glm_folder)


@pytest.fixture(scope="session", params=["kimi", "glm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found
