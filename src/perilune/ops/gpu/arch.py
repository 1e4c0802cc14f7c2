"""The GPUs we compile for: what of an architecture decides how a kernel is cut up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton.backends.compiler import GPUTarget

KIB = 1024


@dataclass(frozen=True)
class Arch:
    """`warp` lanes in a warp (AMD: wave); `shared` bytes of LDS or shared memory a program may have; `units` compute
    units or multiprocessors of the largest chip of its kind."""

    name: str
    backend: str
    code: str | int
    warp: int
    shared: int
    units: int

    @property
    def target(self) -> GPUTarget:
        """As Triton's compiler wants it."""
        return GPUTarget(self.backend, self.code, self.warp)


ARCHES = {
    arch.name: arch
    for arch in (
        Arch("gfx1151", "hip", "gfx1151", 32, 64 * KIB, 40),
        Arch("gfx942", "hip", "gfx942", 64, 64 * KIB, 304),
        Arch("gfx950", "hip", "gfx950", 64, 160 * KIB, 256),
        Arch("sm_90", "cuda", 90, 32, 227 * KIB, 132),
    )
}


def named(name: str) -> Arch:
    """The architecture called `name`. Raises ValueError with those there are."""
    if name not in ARCHES:
        raise ValueError(f"No architecture is called {name!r}. Known: {', '.join(ARCHES)}.")
    return ARCHES[name]


def present(device: torch.device | None = None) -> Arch | str:
    """The architecture of this machine's GPU; a string says why there is none.

    One that is not in the table gets limits every chip of its maker has; its tiles are the defaults.
    """
    if not torch.cuda.is_available():
        return "no GPU that this build of torch can use"
    found = torch.cuda.get_device_properties(device or torch.device("cuda"))
    units = found.multi_processor_count
    if torch.version.hip:
        name = found.gcnArchName.split(":")[0]
        wave = 32 if int(name[3:-2]) >= 10 else 64
        return ARCHES.get(name) or Arch(name, "hip", name, wave, 64 * KIB, units)
    code = 10 * found.major + found.minor
    if code < 80:
        return f"compute capability {found.major}.{found.minor}: bfloat16 products need 8.0"
    return ARCHES.get(f"sm_{code}") or Arch(f"sm_{code}", "cuda", code, 32, 99 * KIB, units)
