"""Hosts without an AMD GPU: what perilune itself needs of an NVIDIA driver or a processor."""

from __future__ import annotations

import re

from perilune.host.fixes import ByHand, Reboot
from perilune.host.rule import CannotTell, Finding, Target, failed, info, passed, rule
from perilune.host.view import Host

_NVIDIA = frozenset((Target.NVIDIA,))
_CPU = frozenset((Target.CPU,))
_INSTALL = ByHand("install the distribution's driver", Reboot.REBOOT)
_LOAD = ByHand("start nvidia-modprobe -u, or pass the GPU on: --gpus all")


@rule("nv.driver", _NVIDIA, why="Without the kernel's driver no program sees the GPU.", source="NVIDIA")
def driver(host: Host) -> Finding:
    text = host.optional_text("/proc/driver/nvidia/version")
    if text is None:
        return failed("the NVIDIA driver is not loaded", None, _INSTALL)
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    if match is None:
        raise CannotTell("/proc/driver/nvidia/version names no version")
    return passed(f"driver {match[1]}", match[1])


@rule("nv.gpus", _NVIDIA, why="The models of the GPUs decide memory, bandwidth and kernels.", source="NVIDIA")
def gpus(host: Host) -> Finding:
    folder = "/proc/driver/nvidia/gpus"
    names = [
        host.text(f"{folder}/{address}/information").partition(":")[2].strip()
        for address in host.names(folder, r"[0-9a-f:.]+")
    ]
    if not names or not all(names):
        raise CannotTell(f"{folder} names no model")
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    return passed(kinds, len(names))


@rule(
    "nv.device", _NVIDIA, why="CUDA opens the control node and the memory node beside the GPU's own.", source="NVIDIA"
)
def device(host: Host) -> Finding:
    for path in ("/dev/nvidiactl", "/dev/nvidia-uvm"):
        reading = host.reading("device", path)
        if reading.absent:
            return failed(f"{path} is missing", None, _LOAD)
        if not host.device(path).strip().endswith(" rw"):
            return failed(f"{path} may not be read and written by this user", None, _LOAD)
    return passed("the device nodes can be used", "rw")


@rule(
    "cpu.isa",
    _CPU,
    why="The kernels come for AVX2, AVX-512 and AVX-512 with VNNI and bf16; elsewhere plain C++ runs.",
    source="PERILUNE",
)
def isa(host: Host) -> Finding:
    text = host.text("/proc/cpuinfo", quiet=True)
    lines = [line for line in text.splitlines() if line.partition(":")[0].strip() in ("flags", "Features")]
    if not lines:
        raise CannotTell("/proc/cpuinfo lists no instruction sets")
    flags = set(lines[0].partition(":")[2].split())
    known = [word for word in ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "asimd", "sve") if word in flags]
    host.saw("/proc/cpuinfo", f"flags: {' '.join(known)}")
    if {"avx512f", "avx512_vnni", "avx512_bf16"} <= flags:
        return passed("AVX-512 with VNNI and bf16", "avx512_bf16")
    if "avx512f" in flags:
        return passed("AVX-512", "avx512f")
    if {"avx2", "fma"} <= flags:
        return passed("AVX2", "avx2")
    return info("no AVX2: the compiler's own vectors are used, which is slower", " ".join(known))


RULES = (driver, gpus, device, isa)
