"""Device nodes, and the container a model runs in: the one the doctor runs in, or one given as `docker inspect`."""

from __future__ import annotations

import re
from typing import Any

from perilune.host.fixes import ByHand, JoinGroups
from perilune.host.rule import AMD, GPU, CannotTell, Finding, Status, failed, passed, rule, skipped, warned
from perilune.host.view import Host
from perilune.units import GIB, KIB, MIB, format_bytes

_NOT_HERE = "not in a container; give one with --with docker-inspect=FILE"
_SHM = 8 * GIB
_GROUPS = ByHand(
    'Docker: --group-add "$(getent group render | cut -d: -f3)" and the same for video; rootless Podman: '
    "--group-add keep-groups"
)
_RUN = ByHand(
    "--device /dev/kfd --device /dev/dri --ipc=host --security-opt seccomp=unconfined --cap-add SYS_PTRACE; "
    "--privileged is not needed"
)


@rule(
    "dev.kfd", AMD, why="Every ROCm program opens /dev/kfd to compute; the group that owns it is render.", source="KV"
)
def kfd(host: Host) -> Finding:
    reading = host.reading("device", "/dev/kfd")
    if reading.absent:
        load = ByHand("sudo modprobe amdgpu; in a container --device /dev/kfd")
        return failed("/dev/kfd is missing: amdgpu is not loaded, or ROCm is off in the kernel", None, load)
    return _usable(host, "/dev/kfd")


@rule(
    "dev.dri", AMD, why="ROCm maps memory through the render node that belongs to the KFD node.", source="KV FIXTURES"
)
def dri(host: Host) -> Finding:
    paths = []
    for node in host.gpus():
        minor = host.value(node, "drm_render_minor")
        if minor <= 0:
            raise CannotTell(f"{node.path}: drm_render_minor {minor} is no render node")
        paths.append(f"/dev/dri/renderD{minor}")
    for path in paths:
        if host.reading("device", path).absent:
            return failed(f"{path} is missing", None, ByHand("pass the whole of /dev/dri: --device /dev/dri"))
    findings = [_usable(host, path) for path in paths]
    return next((found for found in findings if found.status is not Status.PASS), findings[0])


def _usable(host: Host, path: str) -> Finding:
    text = host.device(path)
    match = re.fullmatch(r"c\S{9}\S? gid \d+ (rw|r|w|none)\s*", text)
    if match is None:
        raise CannotTell(f"{path}: {text.strip()[:40]!r} is no device node")
    if match[1] == "rw":
        return passed(f"{path} can be used", "rw")
    return failed(f"{path} is there, but this user may not read and write it", match[1], JoinGroups())


@rule(
    "ctr.groups",
    AMD,
    why="Group names are looked up inside the image, where they are missing or have other numbers.",
    source="KV",
)
def groups(host: Host) -> Finding:
    container = host.container()
    if container is None:
        return skipped("give the container with --with docker-inspect=FILE")
    found = [str(group) for group in _host_config(host, container, "GroupAdd") or ()]
    names = [group for group in found if not group.isdecimal() and group != "keep-groups"]
    if names:
        return warned(f"groups by name: {', '.join(names)}", ", ".join(names), _GROUPS)
    return passed(f"groups {' '.join(found)}" if found else "no groups are added")


@rule(
    "ctr.flags",
    AMD,
    why="Without the devices there is no GPU, with 64 MB of shared memory RCCL fails, with the default seccomp profile "
    "it cannot copy between processes.",
    source="VLLMROCM SEED-GLM",
)
def flags(host: Host) -> Finding:
    container = host.container()
    if container is None:
        return _flags_from_inside(host) if host.in_container() else skipped(_NOT_HERE)
    privileged = bool(_host_config(host, container, "Privileged"))
    devices = {str(device.get("PathOnHost")) for device in _host_config(host, container, "Devices") or ()}
    missing = [
        path for path in ("/dev/kfd", "/dev/dri") if not any(d == path or d.startswith(f"{path}/") for d in devices)
    ]
    if missing and not privileged:
        return failed(f"{' and '.join(missing)} not passed on", None, _RUN)
    shm, shared = _host_config(host, container, "ShmSize"), _host_config(host, container, "IpcMode") == "host"
    if not shared and _many(host) and isinstance(shm, int) and shm <= 64 * MIB:
        return failed(f"{format_bytes(shm)} of shared memory for several GPUs", shm, _RUN)
    lacks = []
    if not privileged and "seccomp=unconfined" not in (_host_config(host, container, "SecurityOpt") or ()):
        lacks.append("seccomp=unconfined")
    if not privileged and not {"SYS_PTRACE", "CAP_SYS_PTRACE"} & set(_host_config(host, container, "CapAdd") or ()):
        lacks.append("SYS_PTRACE")
    if lacks:
        return warned(f"without {' and '.join(lacks)}", None, _RUN)
    return passed("devices, seccomp and capabilities are as ROCm wants them")


def _flags_from_inside(host: Host) -> Finding:
    """From within, of the flags only seccomp shows; dev.kfd, dev.dri and ctr.shm see the rest."""
    text = host.text("/proc/self/status")
    match = re.search(r"^Seccomp:\s*([0-2])\s*$", text, re.MULTILINE)
    if match is None:
        raise CannotTell("/proc/self/status: no Seccomp")
    if match[1] == "0":
        return passed("no seccomp filter", 0)
    return warned("a seccomp filter is in force", int(match[1]), _RUN)


@rule(
    "ctr.shm",
    GPU,
    why="RCCL and vLLM's processes hand tensors over through /dev/shm; Docker gives 64 MB unless told.",
    source="SEED-GLM",
)
def shm(host: Host) -> Finding:
    container = host.container()
    if container is not None:
        if _host_config(host, container, "IpcMode") == "host":
            return passed("the host's, --ipc=host")
        size = _host_config(host, container, "ShmSize")
        if not isinstance(size, int) or size <= 0:
            raise CannotTell("docker inspect shows no ShmSize")
    elif host.in_container():
        found = _shm_of_mounts(host)
        if found is None:
            return passed("no limit but half of the memory")
        size = found
    else:
        return skipped(_NOT_HERE)
    says = f"{format_bytes(size)} of shared memory"
    if size < _SHM and _many(host):
        return warned(f"{says} for several GPUs", size, ByHand("--ipc=host, or --shm-size 8g"))
    return passed(says, size)


def _shm_of_mounts(host: Host) -> int | None:
    """The size of the last mount, which hides earlier ones; None if it has none, which makes it half of the memory."""
    for line in reversed(host.text("/proc/self/mounts", quiet=True).splitlines()):
        fields = line.split()
        if len(fields) == 4 and fields[1] == "/dev/shm":  # noqa: S108
            host.saw("/proc/self/mounts", line)
            if fields[3] == "-":
                return None
            match = re.fullmatch(r"size=(\d+)(k|m|g|)", fields[3])
            if match is None:
                raise CannotTell(f"{fields[3]!r} is no size of shared memory")
            return int(match[1]) * {"": 1, "k": KIB, "m": MIB, "g": GIB}[match[2]]
    raise CannotTell("/proc/self/mounts: no shared memory")


@rule(
    "ctr.cache",
    AMD,
    why="Triton, AITER and MIOpen compile for minutes at the first start; in a container that is lost with it.",
    source="SEED-GLM KV",
)
def cache(host: Host) -> Finding:
    container = host.container()
    if container is not None:
        mounts = [str(mount.get("Destination")) for mount in _dicts(container.get("Mounts"))]
        host.saw("command docker-inspect", f"mounts {' '.join(mounts) or '(none)'}")
    elif host.in_container():
        text = host.text("/proc/self/mounts", quiet=True)
        mounts = [fields[1] for line in text.splitlines() if len(fields := line.split()) == 4 and fields[1] != "/"]
        host.saw("/proc/self/mounts", " ".join(mounts) or "(no cache)")
    else:
        return skipped(_NOT_HERE)
    triton = host.variable("TRITON_CACHE_DIR") or "/root/.triton"
    wanted = ("/root/.cache/vllm", "/root/.aiter", triton)
    kept = [path for path in wanted if any(path == m or path.startswith(f"{m.rstrip('/')}/") for m in mounts if m)]
    says = f"kept: {', '.join(kept) or 'none'}"
    if len(kept) == len(wanted):
        return passed(says, len(kept))
    lost = ", ".join(path for path in wanted if path not in kept)
    return warned(f"{says}; lost with the container: {lost}", len(kept), ByHand(f"mount a volume over {lost}"))


def _many(host: Host) -> bool:
    if host.ask.gpus is not None:
        return host.ask.gpus > 1
    return host.target in AMD and len(host.gpus()) > 1


def _host_config(host: Host, container: dict[str, Any], key: str) -> Any:
    config = container.get("HostConfig")
    found = config.get(key) if isinstance(config, dict) else None
    host.saw("command docker-inspect", f"HostConfig.{key} {found}")
    if key in ("GroupAdd", "SecurityOpt", "CapAdd", "Devices"):
        if found is not None and not isinstance(found, list):
            raise CannotTell(f"docker inspect: HostConfig.{key} is no list")
        return _dicts(found) if key == "Devices" else [word for word in found or () if isinstance(word, str)]
    return found


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


RULES = (kfd, dri, groups, flags, shm, cache)
