"""Bytes pass through small buffers and arrive whole; what is compiled stays in a private folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perilune.ops.staging import Staging

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 129, 1000])
def test_what_goes_up_comes_down(size: int) -> None:
    staging, source = Staging(CPU, 64), torch.randint(0, 256, (size,), dtype=torch.uint8)
    target = torch.zeros(size, dtype=torch.uint8)
    staging.upload(target, lambda part, start: part.copy_(source[start : start + len(part)]))  # type: ignore[arg-type,return-value]
    assert torch.equal(target, source)
    assert staging.download(target) == bytearray(source.numpy())


def test_values_of_any_type_and_shape_are_bytes() -> None:
    source = torch.randn(7, 5, dtype=torch.float64)
    target = torch.empty_like(source)
    payload = torch.frombuffer(Staging(CPU, 24).download(source), dtype=torch.uint8)
    Staging(CPU, 24).upload(target, lambda part, start: part.copy_(payload[start : start + len(part)]))  # type: ignore[arg-type,return-value]
    assert torch.equal(target, source)


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "TRITON_CACHE_DIR"])
def test_compiled_kernels_stay_in_a_folder_of_the_users_or_where_they_are_told(tmp_path: Path, variable: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    code = (
        "from perilune.ops.gpu.cache import compile_cache as c; from triton import knobs; print(c(), knobs.cache.dir)"
    )
    command, environment[variable] = [sys.executable, "-c", code], str(tmp_path)
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    folder = tmp_path / "perilune" / "triton" if variable == "XDG_CACHE_HOME" else tmp_path
    assert said == [str(folder)] * 2
    if variable == "XDG_CACHE_HOME":
        assert folder.stat().st_mode & 0o777 == 0o700
