"""What makes two launches one binary, as Triton decides it: types, alignments and ones of arguments, constants, options.

The same answer whether a kernel is launched, recorded or interpreted, so that what a GPU would compile can be counted
where there is none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.launch import Launch, options

Key = tuple[str, ...]


def key(launch: Launch, arch: Arch) -> Key:
    """Equal for launches that run one binary."""
    signature, constants, attributes = specialised(launch, arch)[1:]
    return (launch.name, *map(str, (signature, constants, attributes, options(launch.tile))))


def specialised(launch: Launch, arch: Arch) -> tuple[Any, dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """(options, signature, constants, attributes) as Triton's own launcher derives them from the arguments."""
    kernel, backend, bind = _binder(launch.kernel, arch)
    given = {**launch.constants, **launch.tile.blocks, **options(launch.tile)}
    bound, specialisation, extra = bind(*launch.args, **given)
    packed = kernel._pack_args(backend, given, bound, specialisation, extra)
    return packed[0], packed[1], packed[2], packed[3]


@lru_cache(maxsize=None)
def _binder(kernel: Any, arch: Arch) -> tuple[Any, Any, Any]:
    """(kernel as the compiler takes it, backend, what binds arguments); of one that is interpreted too."""
    compiled = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
    backend = make_backend(arch.target)
    return compiled, backend, create_function_from_signature(compiled.signature, compiled.params, backend)
