"""One fingerprint per set of weights: the same files give the same, any change another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from perilune.models.fingerprint import fingerprint


@pytest.fixture
def copy(golden_root: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(golden_root / "kimi_linear", folder)  # keeps the times
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def test_a_copy_with_its_times_is_the_same_model(golden_root: Path, copy: Path) -> None:
    assert fingerprint(copy) == fingerprint(golden_root / "kimi_linear") == fingerprint(copy)


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_one_changed_byte_is_another_model_even_if_the_time_is_put_back(copy: Path, name: str) -> None:
    before, path = fingerprint(copy), copy / name
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(copy) != before


def test_a_later_time_a_new_name_and_a_missing_shard_are_other_models(copy: Path) -> None:
    seen = {fingerprint(copy)}
    shard = copy / "model-00002-of-00002.safetensors"
    os.utime(shard, ns=(1, 1))
    seen.add(fingerprint(copy))
    shard.rename(copy / "renamed.safetensors")
    seen.add(fingerprint(copy))
    (copy / "renamed.safetensors").unlink()
    seen.add(fingerprint(copy))
    assert len(seen) == 4
