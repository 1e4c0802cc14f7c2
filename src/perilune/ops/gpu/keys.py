"""What makes two launches one binary, as Triton decides it: types and alignments of arguments, ones, constants.

The same answer whether a kernel is launched, recorded or interpreted, so that what a GPU would compile can be counted
where there is none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.launch import Launch, options

Key = tuple[str, ...]


def key(launch: Launch, arch: Arch) -> Key:
    """Equal for launches that run one binary."""
    given, _, specialisation, _ = _bound(launch, arch)
    return (launch.name, str(specialisation), str(given))


def specialised(launch: Launch, arch: Arch) -> tuple[Any, dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """(options, signature, constants, attributes) as Triton's own launcher derives them from the arguments."""
    kernel, backend, _ = _binder(launch.kernel, arch)
    packed = kernel._pack_args(backend, *_bound(launch, arch))
    return packed[0], packed[1], packed[2], packed[3]


def _bound(launch: Launch, arch: Arch) -> tuple[dict[str, Any], Any, Any, Any]:
    """(constants and options, arguments by name, type and alignment of each, options)."""
    given = {**launch.constants, **launch.tile.blocks, **options(launch.tile)}
    return (given, *_binder(launch.kernel, arch)[2](*launch.args, **given))


@cache
def _binder(kernel: Any, arch: Arch) -> tuple[Any, Any, Any]:
    """(kernel as the compiler takes it, backend, what binds arguments); of one that is interpreted too."""
    compiled = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
    backend = make_backend(arch.target)
    return compiled, backend, create_function_from_signature(compiled.signature, compiled.params, backend)
