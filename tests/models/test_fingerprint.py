"""One fingerprint per set of weights: the same files give the same, any change another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from perilune.models.checkpoint import Checkpoint
from perilune.models.fingerprint import contents, fingerprint


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


def held(folder: Path) -> bytes:
    checkpoint = Checkpoint.open(folder)
    return contents(checkpoint.config, checkpoint.stored)


def test_between_hosts_a_copy_is_the_same_model_whenever_and_however_it_was_written(copy: Path) -> None:
    before = held(copy)
    for path in copy.iterdir():
        os.utime(path, ns=(1, 1))
    assert held(copy) == before
    index = json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {name: load_file(copy / file)[name].clone() for name, file in index.items()}
    for path in copy.glob("*.safetensors"):
        path.unlink()
    (copy / "model.safetensors.index.json").unlink()
    save_file(tensors, copy / "model.safetensors")  # one file instead of two
    assert held(copy) == before


def test_between_hosts_another_config_or_any_changed_tensor_is_another_model(copy: Path) -> None:
    seen = {held(copy)}
    shard = copy / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    for name in list(tensors)[:3]:
        changed = {**tensors, name: tensors[name] + 1}
        save_file(changed, shard)
        seen.add(held(copy))
    save_file(tensors, shard)
    assert held(copy) in seen
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    seen.add(held(copy))
    assert len(seen) == 5
