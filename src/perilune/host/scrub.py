"""What a reading keeps: the lines and fields the rules read, and nothing that names a person, a machine or a network.

Applied before a rule sees a text, live and replayed alike, so that a snapshot has exactly what the verdicts rest on.
`scrub` is idempotent: a snapshot of a snapshot is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

_UUID = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", re.IGNORECASE)
_MAC = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-f]{1,4}:){4,7}(?::?[0-9a-f]{1,4})?(?![\w:])", re.IGNORECASE)
_HOME = re.compile(r"(/home|/Users|/media|/run/media)/[^/\s:,\"]+")

# Kernel options whose values the rules read, by exact name or by what a name begins with.
_OPTIONS = re.compile(
    r"(?:amdgpu|ttm|amdttm|iommu|amd_iommu|intel_iommu|pci|numa_balancing|transparent_hugepage|hugepages|hugepagesz"
    r"|default_hugepagesz)(?:[._]\S*)?"
)
# Kernel messages the rules know (drv.dmesg, mem.gttsize), with what leads up to them on the line.
LOG_LINES = re.compile(
    r"(?:amdgpu|\[drm|\[gfxhub|AMD-Vi|TTM).*?(?:MES failed to respond|MES ring buffer is full|page fault"
    r"|GCVM_L2_PROTECTION_FAULT|\*ERROR\* ring \S* ?timeout|Unknown option|unknown parameter 'gtt_size'"
    r"|gttsize via module parameter is deprecated|GTT memory ready|VRAM memory ready|GTT size has been set as).*"
)
_LOG_HEADER = re.compile(r"# \d+ lines, \d+ of amdgpu")


def scrub(kind: str, name: str, text: str) -> str:
    """The part of `text` that may leave the machine."""
    text = text.replace("\0", "")
    for pattern, keep in _KEEP:
        if re.fullmatch(pattern, f"{kind} {name}"):
            text = keep(text)
            break
    text = "\n".join(line for line in text.split("\n") if "serial" not in line.lower())
    text = _HOME.sub(r"\1/user", _MAC.sub("MAC", _UUID.sub("UUID", text)))
    if kind == "variable" or name in ("dmesg", "docker-inspect"):
        text = _IPV6.sub("ADDRESS", _IPV4.sub("ADDRESS", text))
    return text


def _lines(pattern: str) -> Callable[[str], str]:
    """Keeps the lines that begin with a match."""
    begin = re.compile(pattern)
    return lambda text: _joined(line for line in text.splitlines() if begin.match(line))


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _cmdline(text: str) -> str:
    kept = [word for word in text.split() if _OPTIONS.fullmatch(word.partition("=")[0].replace("-", "_"))]
    return " ".join(kept) + "\n"


def _log(text: str) -> str:
    """Known messages without time, host and process. The first line counts all lines, so that an empty log shows."""
    lines = text.splitlines()
    if lines and _LOG_HEADER.fullmatch(lines[0]):
        header, lines = lines[0], lines[1:]
    else:
        header = f"# {len(lines)} lines, {sum('amdgpu' in line for line in lines)} of amdgpu"
    return _joined([header, *(match[0] for line in lines if (match := LOG_LINES.search(line)))])


def _cpuinfo(text: str) -> str:
    """The first processor's model and instruction sets; the others are alike."""
    wanted = ("model name", "flags", "Features")
    first = text.split("\n\n", 1)[0].splitlines()
    return _joined(line for line in first if line.partition(":")[0].strip() in wanted)


def _mounts(text: str) -> str:
    """Where things are mounted, not from where: a source can be another machine's name."""
    kept = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 4 and (fields[1] in ("/", "/dev/shm") or "cache" in fields[1] or "/." in fields[1]):  # noqa: S108
            size = [option for option in fields[3].split(",") if option.startswith("size=")]
            kept.append(f"- {fields[1]} {fields[2]} {size[0] if size else '-'}")
    return _joined(kept)


def _json(reduce: Callable[[Any], Any]) -> Callable[[str], str]:
    """Keeps what `reduce` returns of a JSON document; of anything else nothing but the fact that it was none."""

    def keep(text: str) -> str:
        try:
            return json.dumps(reduce(json.loads(text)))
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            return "not the JSON expected"

    return keep


def _inspect(data: Any) -> Any:
    """Of `docker inspect`: devices, groups, limits, mount points, and the variables that rules read."""
    container = data[0] if isinstance(data, list) else data
    config, host = container.get("Config") or {}, container["HostConfig"]
    wanted = ("Privileged", "GroupAdd", "IpcMode", "ShmSize", "SecurityOpt", "CapAdd")
    return [
        {
            "HostConfig": {key: host.get(key) for key in wanted}
            | {"Devices": [{"PathOnHost": device.get("PathOnHost")} for device in host.get("Devices") or ()]},
            "Mounts": [{"Destination": mount.get("Destination")} for mount in container.get("Mounts") or ()],
            "Config": {"Env": [word for word in config.get("Env") or () if word.partition("=")[0] in VARIABLES]},
        }
    ]


def _firmware_list(data: Any) -> Any:
    """Of `amd-smi firmware --json`: which firmware each GPU runs. Also written as {"gpu_data": [...]}."""
    gpus: Any = data["gpu_data"] if isinstance(data, dict) else data
    return [
        {
            "gpu": gpu.get("gpu"),
            "fw_list": [{"fw_id": fw.get("fw_id"), "fw_version": fw.get("fw_version")} for fw in gpu["fw_list"]],
        }
        for gpu in gpus
    ]


# Every variable of the environment that a rule reads.
VARIABLES = frozenset(
    (
        "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_ENABLE_SDMA",
        "HSA_FORCE_FINE_GRAIN_PCIE", "HSA_NO_SCRATCH_RECLAIM", "HSA_OVERRIDE_GFX_VERSION", "HSA_XNACK",
        "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF",
        "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES", "TRITON_CACHE_DIR", "VLLM_ATTENTION_BACKEND",
        "VLLM_USE_TRITON_FLASH_ATTN", "VLLM_USE_V1",
    )
)  # fmt: skip

_KEEP: tuple[tuple[str, Callable[[str], str]], ...] = (
    (r"file /run/\.containerenv", lambda _: ""),  # that it is there says all; it names the container
    (r"file /proc/cmdline", _cmdline),
    (r"file /proc/meminfo", _lines(r"(MemTotal|MemAvailable|SwapTotal|HugePages_Total|Hugepagesize):")),
    (r"file /proc/cpuinfo", _cpuinfo),
    (r"file /proc/self/limits", _lines(r"Max (open files|locked memory) ")),
    (r"file /proc/self/status", _lines(r"Seccomp:")),
    (r"file /proc/self/mounts", _mounts),
    (r"file /proc/driver/nvidia/gpus/[^/]+/information", _lines(r"Model:")),
    (r"file /etc/os-release", _lines(r"(ID|ID_LIKE|VERSION_ID)=")),
    (r"file /etc/modprobe\.d/.*", _lines(r"\s*options\s+(ttm|amdttm|amdgpu)\s")),
    (r"file /sys/class/kfd/kfd/topology/nodes/\d+/properties", _lines(r"(?!unique_id)[a-z0-9_]+ ")),
    (r"file .*/uevent", _lines(r"PCI_SLOT_NAME=")),
    (r"file /sys/kernel/debug/dri/.*", _lines(r"(MES|MEC) ")),
    (r"command dmesg", _log),
    (r"command docker-inspect", _json(_inspect)),
    (r"command amd-smi-firmware", _json(_firmware_list)),
    (r"command rocm-smi-showfw", _lines(r".*(firmware version|get_firmware_version)")),
    (r"command rocminfo", _lines(r"\s*(Name|Packet Processor uCode):+\s+(gfx\w+|\d+)\s*$")),
)
