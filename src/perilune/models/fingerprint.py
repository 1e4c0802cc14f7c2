"""Which weights these are, without reading all of them: for one host, and between hosts. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from perilune.models.safetensors_file import StoredTensor

SAMPLES, SAMPLE_BYTES = 16, 65536
TENSOR_BYTES = 4096


def fingerprint(folder: Path) -> bytes:
    """A hash of config.json and, per safetensors file, its name, size, time of change and 16 samples of 64 KiB.

    The time is there for a file of which only what lies between the samples was changed. A copy that does not keep
    the time counts as another model: that costs a cache, and mistaking one model for another would cost answers.
    """
    seen = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        stat = path.stat()
        seen.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, stat.st_size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                seen.update(file.read(SAMPLE_BYTES))
    return seen.digest()


def contents(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> bytes:
    """A hash of the config and, per tensor, its name, dtype, shape and 4 KiB from its middle.

    The same for every copy, whenever it was made and however it is cut into files, so that two hosts can compare it.
    What was trained further, quantised otherwise or has one tensor exchanged differs; a few values changed by hand
    elsewhere in a tensor do not show.
    """
    seen = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    samples: dict[str, bytes] = {}
    by_file = sorted(stored.items(), key=lambda item: (str(item[1].file), item[1].offset))
    for path, tensors in groupby(by_file, key=lambda item: item[1].file):
        file = os.open(path, os.O_RDONLY)
        try:
            for name, tensor in tensors:
                size = min(TENSOR_BYTES, tensor.nbytes)
                samples[name] = os.pread(file, size, tensor.offset + (tensor.nbytes - size) // 2)
        finally:
            os.close(file)
    for name in sorted(samples):
        seen.update(f"{name} {stored[name].dtype} {stored[name].shape} ".encode() + samples[name])
    return seen.digest()
