"""Where an engine computes: the processor, or a GPU that torch can use. What cannot be is refused before it loads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from perilune.errors import ConfigError, UnsupportedError

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Gpus:
    """What torch has: `names` of the GPUs it can use; if there are none, `why`."""

    names: tuple[str, ...]
    why: str = ""


def gpus() -> Gpus:
    """Ask torch and, on the way, the driver."""
    if torch.version.cuda is None and torch.version.hip is None:
        return Gpus((), f"torch {torch.__version__} is built for processors only")
    if not torch.cuda.is_available():
        hidden = [f"{name}={os.environ[name]}" for name in _VISIBLE if name in os.environ]
        return Gpus((), f"torch {torch.__version__} finds no GPU" + (f" ({', '.join(hidden)})" if hidden else ""))
    return Gpus(tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())))


def choose_device(name: str, found: Gpus, rank: int = 0, ranks: int = 1) -> tuple[torch.device, str]:
    """(device of `rank`, why) for what a user calls cpu, auto, cuda or cuda:N; each of `ranks` has a GPU of its own,
    from N on. `auto` is a processor unless there is a GPU for every rank.

    Raises UnsupportedError if there is no GPU at all, ConfigError if there are too few.
    """
    count = len(found.names)
    if name == "cpu":
        return torch.device("cpu"), "as set"
    if name == "auto" and count < ranks:
        return torch.device("cpu"), found.why or f"{count} GPUs for {ranks} ranks"
    if not count:
        raise UnsupportedError(
            f"device {name!r} cannot be used: there is no GPU.",
            f"{found.why[0].upper()}{found.why[1:]}." if found.why else "",
            "Install torch's build for ROCm or CUDA, see `perilune doctor` and docs/gpu.md; or use --device cpu.",
        )
    first = int(name.partition(":")[2] or 0)
    if first + ranks > count:
        listed = ", ".join(f"cuda:{index} {each}" for index, each in enumerate(found.names))
        raise ConfigError(
            f"device {name!r} with {ranks} rank{'s' if ranks > 1 else ''} needs cuda:{first + ranks - 1}.",
            f"There {'are' if count > 1 else 'is'} {listed}.",
            "Name another device, or lower tp.",
        )
    index = first + rank
    return torch.device("cuda", index), f"{found.names[index]}{'' if name == 'auto' else ', as set'}"


def open_device(name: str, rank: int = 0, ranks: int = 1) -> tuple[torch.device, str]:
    """`choose_device` among what there is, ready to compute on. Raises as it does, and UnsupportedError for a GPU that
    kernels cannot be compiled for."""
    device, why = choose_device(name, Gpus(()) if name == "cpu" else gpus(), rank, ranks)
    if device.type == "cpu":
        return device, why
    if find_spec("triton") is None:
        raise UnsupportedError("There is no Triton to compile kernels with.", "", "pip install 'perilune[gpu]'.")
    from perilune.ops.gpu.arch import present

    arch = present(device)
    if isinstance(arch, str):
        raise UnsupportedError(f"{device} cannot be used: {arch}.", "", "Use --device cpu.")
    torch.cuda.set_device(device)
    return device, f"{why}, {arch.name}"
