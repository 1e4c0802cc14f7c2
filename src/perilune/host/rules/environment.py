"""Variables of the environment and Python packages: traps that look like cures, and versions with known faults."""

from __future__ import annotations

from perilune.host.fixes import ByHand
from perilune.host.rule import (
    AMD,
    EVERY,
    INSTINCT,
    STRIX,
    Finding,
    Target,
    failed,
    info,
    passed,
    rule,
    skipped,
    warned,
)
from perilune.host.view import Host


def _unset(*names: str) -> ByHand:
    return ByHand(f"unset {' '.join(names)}, here and in the container's environment")


@rule(
    "env.gfx_override",
    AMD,
    why="The override makes the runtime load kernels for another chip: a memory access fault in three lines of torch.",
    source="5824 SEED-GLM",
)
def gfx_override(host: Host) -> Finding:
    name = "HSA_OVERRIDE_GFX_VERSION"
    found = host.variable(name)
    if found is None:
        return passed("not set")
    if host.target is Target.STRIX_HALO and found.strip() == "11.5.1":
        return warned(f"{name}={found} does nothing on gfx1151", found, _unset(name))
    return failed(f"{name}={found}", found, _unset(name))


@rule(
    "env.xnack",
    AMD,
    why="KFD has no XNACK on gfx1151. The variable only inflates what vLLM computes (73.6 GiB of cache against 31 GB "
    "that could be allocated).",
    source="SEED-LINEAR",
)
def xnack(host: Host) -> Finding:
    found = {name: host.variable(name) for name in ("HSA_XNACK", "HSA_FORCE_FINE_GRAIN_PCIE")}
    names = tuple(name for name, value in found.items() if value is not None)
    says = ", ".join(f"{name}={found[name]}" for name in names)
    if not names:
        return passed("not set")
    return warned(says, says, _unset(*names)) if host.target in STRIX else info(says, says)


_ALLOC = ("PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@rule(
    "env.alloc_conf",
    AMD,
    why="Expandable segments on ROCm 7.14 are reported to hang, and with max_split_size_mb to read back zeros.",
    source="PT183387 PT192259 6603",
)
def alloc_conf(host: Host) -> Finding:
    found = {name: value for name in _ALLOC if (value := host.variable(name)) is not None}
    if not found:
        return passed("not set")
    says = ", ".join(f"{name}={value}" for name, value in found.items())
    text = ",".join(found.values()).replace(" ", "").lower()
    expandable = "expandable_segments:true" in text
    if expandable and "max_split_size_mb" in text:
        return failed(f"{says}: live tensors can read back as zeros", says, _unset(*found))
    if len(found) > 1:
        return warned(f"{says}: several names, one wins", says, _unset(*found))
    rocm, torch = host.rocm(), host.package("torch")
    if expandable and (rocm is None or rocm >= (7, 14)):
        where = "ROCm of unknown version" if rocm is None else "ROCm 7.14 and later"
        return warned(f"{says}: reported to hang on {where}", says, _unset(*found))
    if _ALLOC[0] not in found and torch is not None and torch >= (2, 9):
        return info(f"{says}: from torch 2.9 the name is PYTORCH_ALLOC_CONF", says)
    return info(says, says)


@rule(
    "env.visible",
    AMD,
    why="Both variables renumber: with different lists the second picks from what the first left, not from the host.",
    source="IX",
)
def visible(host: Host) -> Finding:
    rocr, hip = host.variable("ROCR_VISIBLE_DEVICES"), host.variable("HIP_VISIBLE_DEVICES")
    if rocr is not None and hip is not None and rocr.replace(" ", "") != hip.replace(" ", ""):
        both = f"ROCR_VISIBLE_DEVICES={rocr}, HIP_VISIBLE_DEVICES={hip}"
        how = "set one of them; with Ray also RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES=1"
        return warned(both, both, ByHand(how))
    if rocr is None and hip is None:
        return passed("every GPU is visible")
    return passed(f"GPUs {rocr if hip is None else hip}", rocr if hip is None else hip)


@rule(
    "env.stale",
    EVERY,
    why="vLLM removed these; they are ignored without a word, and what they were meant to choose is not chosen.",
    source="V50292",
)
def stale(host: Host) -> Finding:
    names = ("VLLM_ATTENTION_BACKEND", "VLLM_USE_V1", "VLLM_USE_TRITON_FLASH_ATTN")
    found = [f"{name}={value}" for name in names if (value := host.variable(name)) is not None]
    if host.target in AMD and host.variable("HSA_ENABLE_SDMA") == "0":
        found.append("HSA_ENABLE_SDMA=0")
    if not found:
        return passed("none is set")
    how = ByHand(f"unset {' '.join(word.partition('=')[0] for word in found)}; vLLM takes --attention-backend")
    return warned(", ".join(found), ", ".join(found), how)


@rule(
    "env.transformers",
    EVERY,
    why="transformers 5.4.0 to 5.5.3 shift every Kimi-K2.5 token id above 163588, so that </think> is never seen.",
    source="HF45359",
)
def transformers(host: Host) -> Finding:
    found = host.package("transformers")
    if found is None:
        return skipped("transformers is not installed here")
    text = ".".join(map(str, found))
    if (5, 4) <= found < (5, 5, 4):
        fix = ByHand("pip install 'transformers>=5.5.4'")
        if host.target in INSTINCT:
            return failed(f"transformers {text}", text, fix)
        return warned(f"transformers {text}: wrong ids with Kimi-K2.5 and K2.6", text, fix)
    return passed(f"transformers {text}", text)


@rule("env.vllm", EVERY, why="vLLM 0.10.1 to 0.17 lets a request run code on the server.", source="CVE")
def vllm(host: Host) -> Finding:
    found = host.package("vllm")
    if found is None:
        return skipped("vLLM is not installed here")
    text = ".".join(map(str, found))
    if (0, 10, 1) <= found < (0, 18):
        return warned(f"vLLM {text}: CVE-2026-27893", text, ByHand("use vLLM 0.18.0 or later"))
    return passed(f"vLLM {text}", text)


RULES = (gfx_override, xnack, alloc_conf, visible, stale, transformers, vllm)
