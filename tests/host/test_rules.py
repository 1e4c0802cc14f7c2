"""Every other rule: at, below and above each threshold, and what is missing, forbidden or senseless."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bundles import Bundle, Problem, changed, check, load, without

from perilune.host.rule import Status, Target
from perilune.host.view import Ask

STRIX, INSTINCT = load("reconstructed/strix-good"), load("reconstructed/mi355x-good")
NODES = "/sys/class/kfd/kfd/topology/nodes"
CARD = "/sys/class/drm/card1/device"
DENIED = Problem("permission denied")
PASS, WARN, FAIL, UNKNOWN, INFO, SKIP = (
    Status.PASS, Status.WARN, Status.FAIL, Status.UNKNOWN, Status.INFO, Status.SKIP,
)  # fmt: skip
S, M, N, C = Target.STRIX_HALO, Target.MI355X, Target.NVIDIA, Target.CPU
GOOD = {S: STRIX, M: INSTINCT, N: {}, C: {}}

Text = str | Problem | None


def verdict(target: Target, id: str, kind: str, name: str, text: Text) -> Status:
    """The status after one reading is changed; None takes it away."""
    good: Bundle = GOOD[target]
    bundle = without(good, (kind, name)) if text is None else changed(good, {(kind, name): text})
    return check(bundle, id, target).status


CMDLINE, LIMITS, DMI = "/proc/cmdline", "/proc/self/limits", "/sys/class/dmi/id"
PARAMS = "/sys/module/amdgpu/parameters"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
SELINUX = "/sys/fs/selinux"
FILES: list[tuple[Target, str, str, Text, Status]] = [
    (S, "sys.bios", f"{DMI}/bios_version", "03.04", WARN),
    (S, "sys.bios", f"{DMI}/bios_version", "03.05", PASS),
    (S, "sys.bios", f"{DMI}/bios_version", "3.06", PASS),
    (S, "sys.bios", f"{DMI}/bios_version", "beta", UNKNOWN),
    (S, "sys.bios", f"{DMI}/bios_version", None, UNKNOWN),
    (S, "sys.bios", f"{DMI}/sys_vendor", "GMKtec", INFO),
    (S, "sys.bios", f"{DMI}/product_name", DENIED, UNKNOWN),
    (S, "sys.rocm", "/opt/rocm/.info/version", None, SKIP),
    (S, "sys.rocm", "/opt/rocm/.info/version", "7.0.1", FAIL),
    (S, "sys.rocm", "/opt/rocm/.info/version", "7.0.2-56", PASS),
    (S, "sys.rocm", "/opt/rocm/.info/version", "", UNKNOWN),
    (S, "sys.rocm", "/opt/rocm/.info/version", DENIED, UNKNOWN),
    (M, "sys.rocm", "/opt/rocm/.info/version", "6.4.4-129", FAIL),
    (M, "sys.rocm", "/opt/rocm/.info/version", "7.0.0", PASS),
    (S, "fw.mes", f"{CARD}/fw_version/mes_fw_version", "0x00000083", FAIL),
    (S, "fw.mes", f"{CARD}/fw_version/mes_fw_version", "0x00000088", PASS),
    (S, "fw.mes", f"{CARD}/fw_version/mes_fw_version", "0x0000007f", WARN),
    (S, "fw.mes", f"{CARD}/fw_version/mes_fw_version", "N/A", UNKNOWN),
    (S, "fw.mes", f"{CARD}/fw_version/mes_fw_version", None, UNKNOWN),
    (S, "fw.mes", f"{CARD}/fw_version/mes_fw_version", DENIED, UNKNOWN),
    (S, "fw.file", "/lib/firmware/updates/amdgpu/gc_11_5_1_mes_2.bin", "", WARN),
    (S, "fw.file", "/lib/firmware/updates/amdgpu", DENIED, UNKNOWN),
    (S, "fw.file", "/.dockerenv", "", SKIP),
    (S, "gpu.kfd_nodes", f"{NODES}/1/properties", DENIED, UNKNOWN),
    (S, "gpu.kfd_nodes", f"{NODES}/1/properties", "", UNKNOWN),
    (S, "gpu.kfd_nodes", f"{NODES}/1/properties", "simd_count 0\ngfx_target_version 0\n", FAIL),
    (S, "gpu.kfd_nodes", f"{NODES}/1/properties", "simd_count 32\ngfx_target_version 110500\n", WARN),
    (S, "gpu.kfd_nodes", NODES, DENIED, UNKNOWN),
    (S, "gpu.model", f"{NODES}/1/properties", "simd_count 64\ngfx_target_version 110501\ndevice_id 5510\n", PASS),
    (S, "gpu.model", f"{NODES}/1/properties", "simd_count 64\ngfx_target_version 110501\ndevice_id 5511\n", WARN),
    (S, "gpu.model", f"{NODES}/1/properties", "simd_count 64\ngfx_target_version 110501\n", UNKNOWN),
    (S, "gpu.model", "/sys/bus/pci/devices/0000:c6:00.0/device", "0x150e", WARN),
    (S, "gpu.model", "/sys/bus/pci/devices/0000:c6:00.0/device", "", UNKNOWN),
    (M, "gpu.count", f"{NODES}/9/properties", "simd_count 0\n", WARN),
    (M, "gpu.count", f"{NODES}/9/properties", DENIED, UNKNOWN),
    (M, "gpu.partition", f"{CARD}/current_compute_partition", "CPX", FAIL),
    (M, "gpu.partition", f"{CARD}/current_compute_partition", "", UNKNOWN),
    (M, "gpu.partition", f"{CARD}/current_compute_partition", "N/A", UNKNOWN),
    (M, "gpu.partition", f"{CARD}/current_compute_partition", Problem("operation not permitted"), UNKNOWN),
    (M, "gpu.partition", f"{CARD}/current_memory_partition", "NPS4", FAIL),
    (M, "gpu.partition", f"{CARD}/current_memory_partition", None, UNKNOWN),
    (M, "gpu.clean", f"{CARD}/mem_info_vram_used", "30922086809", PASS),
    (M, "gpu.clean", f"{CARD}/mem_info_vram_used", "30922086810", WARN),
    (M, "gpu.clean", f"{CARD}/mem_info_vram_used", "N/A", UNKNOWN),
    (M, "gpu.clean", f"{CARD}/mem_info_vram_used", "-1", UNKNOWN),
    (M, "gpu.clean", f"{CARD}/mem_info_vram_total", "0", UNKNOWN),
    (S, "gpu.clean", f"{CARD}/mem_info_gtt_used", "12025908428", PASS),
    (S, "gpu.clean", f"{CARD}/mem_info_gtt_used", "12025908429", WARN),
    (S, "gpu.clean", f"{CARD}/mem_info_gtt_used", DENIED, UNKNOWN),
    (M, "fw.mec", f"{NODES}/9/properties", "simd_count 1\ngfx_target_version 90500\nfw_version 24\n", PASS),
    (M, "fw.mec", f"{NODES}/9/properties", "simd_count 1\ngfx_target_version 90500\nfw_version 23\n", WARN),
    (M, "fw.mec", f"{NODES}/9/properties", "simd_count 1\ngfx_target_version 90500\nfw_version 0\n", WARN),
    (M, "fw.mec", f"{NODES}/9/properties", "simd_count 1\ngfx_target_version 90500\nfw_version N/A\n", WARN),
    (M, "fw.mec", "/opt/rocm/.info/version", "6.4.3", WARN),
    (M, "fw.mec", "/opt/rocm/.info/version", None, PASS),
    (M, "fw.uniform", f"{NODES}/9/properties", "simd_count 1\ngfx_target_version 90500\nfw_version 40\n", WARN),
    (M, "fw.uniform", f"{NODES}/9/properties", "simd_count 1\ngfx_target_version 90500\n", UNKNOWN),
    (S, "drv.params", f"{PARAMS}/noretry", "0", WARN),
    (S, "drv.params", f"{PARAMS}/noretry", "1", PASS),
    (S, "drv.params", f"{PARAMS}/cwsr_enable", "0", WARN),
    (S, "drv.params", f"{PARAMS}/cwsr_enable", DENIED, UNKNOWN),
    (S, "drv.params", f"{PARAMS}/cwsr_enable", "", UNKNOWN),
    (S, "drv.params", CMDLINE, "amdgpu.xnack=1", WARN),
    (S, "drv.dkms", "/sys/module/amdgpu/version", "6.18.3", WARN),
    (S, "drv.dkms", "/sys/module/amdgpu/version", DENIED, UNKNOWN),
    (M, "drv.dkms", "/sys/module/amdgpu/version", "6.18.3", PASS),
    (M, "drv.dkms", "/sys/module/amdgpu/version", None, PASS),
    (S, "drv.npu", "/sys/module/amdxdna/version", "1", INFO),
    (S, "boot.iommu", CMDLINE, "amd_iommu=off", INFO),
    (S, "boot.iommu", CMDLINE, "iommu=pt", INFO),
    (S, "boot.iommu", CMDLINE, "amd_iommu=pt", WARN),
    (S, "boot.iommu", CMDLINE, "amd_iommu=on", WARN),
    (S, "boot.iommu", CMDLINE, DENIED, UNKNOWN),
    (M, "boot.iommu", CMDLINE, "quiet", WARN),
    (M, "boot.iommu", CMDLINE, "iommu=pt", PASS),
    (M, "boot.iommu", CMDLINE, "iommu=soft,pt", PASS),
    (M, "boot.iommu", CMDLINE, "iommu.passthrough=1", PASS),
    (M, "boot.iommu", CMDLINE, "iommu.passthrough=0", WARN),
    (M, "boot.iommu", CMDLINE, "amd_iommu=on iommu=pt", WARN),
    (M, "boot.iommu", CMDLINE, "amd_iommu=off", PASS),
    (M, "boot.realloc", CMDLINE, "pci=realloc=off", PASS),
    (M, "boot.realloc", CMDLINE, "pci=noaer,realloc=off", PASS),
    (M, "boot.realloc", CMDLINE, "pci=realloc=on", WARN),
    (M, "boot.realloc", CMDLINE, None, UNKNOWN),
    (M, "os.numa_balancing", "/proc/sys/kernel/numa_balancing", "1", WARN),
    (M, "os.numa_balancing", "/proc/sys/kernel/numa_balancing", "2", WARN),
    (M, "os.numa_balancing", "/proc/sys/kernel/numa_balancing", "0", PASS),
    (M, "os.numa_balancing", "/proc/sys/kernel/numa_balancing", None, PASS),
    (M, "os.numa_balancing", "/proc/sys/kernel/numa_balancing", "", UNKNOWN),
    (S, "os.numa_balancing", "/proc/sys/kernel/numa_balancing", "1", INFO),
    (M, "os.numa_nodes", "/sys/bus/pci/devices/0000:05:00.0/numa_node", "-1", WARN),
    (M, "os.numa_nodes", "/sys/bus/pci/devices/0000:05:00.0/numa_node", "1", INFO),
    (M, "os.numa_nodes", "/sys/bus/pci/devices/0000:05:00.0/numa_node", None, UNKNOWN),
    (S, "os.thp", THP, "[always] madvise never", PASS),
    (S, "os.thp", THP, "always madvise [never]", WARN),
    (S, "os.thp", THP, "always madvise never", UNKNOWN),
    (S, "os.thp", THP, None, SKIP),
    (S, "os.thp", THP, DENIED, UNKNOWN),
    (C, "os.thp", THP, "[always] madvise never", PASS),
    (S, "os.hugepages", "/proc/meminfo", "MemTotal: 100000 kB\nHugePages_Total: 2\nHugepagesize: 2500 kB\n", PASS),
    (S, "os.hugepages", "/proc/meminfo", "MemTotal: 100000 kB\nHugePages_Total: 2\nHugepagesize: 2501 kB\n", WARN),
    (S, "os.hugepages", "/proc/meminfo", "MemTotal: 100000 kB\nHugePages_Total: x\nHugepagesize: 1 kB\n", UNKNOWN),
    (S, "os.ulimits", LIMITS, "Max open files  65536  65536 files\nMax locked memory  1 1 bytes\n", PASS),
    (S, "os.ulimits", LIMITS, "Max open files  65535  65536 files\nMax locked memory  1 1 bytes\n", WARN),
    (S, "os.ulimits", LIMITS, "Max open files  unlimited  unlimited files\nMax locked memory 1 1 bytes\n", PASS),
    (S, "os.ulimits", LIMITS, "Max open files\nMax locked memory 1 1 bytes\n", UNKNOWN),
    (S, "os.ulimits", LIMITS, "", UNKNOWN),
    (S, "os.ulimits", "/.dockerenv", "", WARN),
    (S, "os.power", f"{CARD}/pp_dpm_sclk", "0: 600Mhz *\n", PASS),
    (S, "os.power", f"{CARD}/pp_dpm_sclk", "0: 600Mhz\n", UNKNOWN),
    (S, "os.power", f"{CARD}/gpu_busy_percent", "99", PASS),
    (S, "os.power", f"{CARD}/gpu_busy_percent", "", UNKNOWN),
    (S, "os.power", "/etc/tuned/active_profile", "balanced", INFO),
    (S, "os.power", "/etc/tuned/active_profile", None, INFO),
    (S, "os.selinux", f"{SELINUX}/booleans/container_use_devices", "0 0", WARN),
    (S, "os.selinux", f"{SELINUX}/booleans/container_use_devices", "0 1", WARN),
    (S, "os.selinux", f"{SELINUX}/booleans/container_use_devices", "on", UNKNOWN),
    (S, "os.selinux", f"{SELINUX}/booleans/container_use_devices", DENIED, UNKNOWN),
    (S, "os.selinux", f"{SELINUX}/enforce", "0", SKIP),
    (S, "os.selinux", "/etc/os-release", "ID=ubuntu", SKIP),
    (S, "os.apparmor_userns", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", INFO),
    (S, "os.apparmor_userns", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0", PASS),
    (S, "os.apparmor_userns", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", DENIED, UNKNOWN),
    (N, "nv.driver", "/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX  580.95.05  Tue", PASS),
    (N, "nv.driver", "/proc/driver/nvidia/version", "NVRM", UNKNOWN),
    (N, "nv.driver", "/proc/driver/nvidia/version", None, FAIL),
    (N, "nv.gpus", "/proc/driver/nvidia/gpus/0000:05:00.0/information", "Model: \t NVIDIA H200\n", PASS),
    (N, "nv.gpus", "/proc/driver/nvidia/gpus/0000:05:00.0/information", "", UNKNOWN),
    (N, "nv.gpus", "/proc/driver/nvidia/gpus", DENIED, UNKNOWN),
    (C, "cpu.isa", "/proc/cpuinfo", "flags : fma avx2\n", PASS),
    (C, "cpu.isa", "/proc/cpuinfo", "flags : sse2\n", INFO),
    (C, "cpu.isa", "/proc/cpuinfo", "Features : asimd sve\n", INFO),
    (C, "cpu.isa", "/proc/cpuinfo", "", UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(("target", "id", "name", "text", "status"), FILES)
def test_files(target: Target, id: str, name: str, text: Text, status: Status) -> None:
    assert verdict(target, id, "file", name, text) is status


OTHER: list[tuple[Target, str, str, str, Text, Status]] = [
    (S, "fw.pkg", "command", "rpm-firmware", "amd-gpu-firmware-20251125-1.fc43.noarch", FAIL),
    (S, "fw.pkg", "command", "rpm-firmware", "amd-gpu-firmware-20251126-1.fc43.noarch", WARN),
    (S, "fw.pkg", "command", "rpm-firmware", "amd-gpu-firmware-20260109-1.fc43.noarch", WARN),
    (S, "fw.pkg", "command", "rpm-firmware", "amd-gpu-firmware-20260110-1.fc43.noarch", PASS),
    (S, "fw.pkg", "command", "rpm-firmware", "amd-gpu-firmware-20251111-1.fc43.noarch", INFO),
    (S, "fw.pkg", "command", "rpm-firmware", "package amd-gpu-firmware is not installed", UNKNOWN),
    (S, "fw.pkg", "command", "rpm-firmware", "", UNKNOWN),
    (S, "fw.pkg", "command", "rpm-firmware", None, UNKNOWN),
    (S, "fw.pkg", "command", "rpm-firmware", Problem("took too long"), UNKNOWN),
    (S, "fw.pkg", "file", "/.dockerenv", "", SKIP),
    (S, "fw.pkg", "file", "/etc/os-release", "ID=nixos", UNKNOWN),
    (S, "dev.kfd", "device", "/dev/kfd", None, FAIL),
    (S, "dev.kfd", "device", "/dev/kfd", DENIED, UNKNOWN),
    (S, "dev.kfd", "device", "/dev/kfd", "crw-rw-rw- gid 65534 rw", PASS),
    (S, "dev.kfd", "device", "/dev/kfd", "crw-rw---- gid 105 none", FAIL),
    (S, "dev.kfd", "device", "/dev/kfd", "crw-r----- gid 105 r", FAIL),
    (S, "dev.kfd", "device", "/dev/kfd", "drwxr-xr-x gid 0 rw", UNKNOWN),
    (S, "dev.kfd", "device", "/dev/kfd", "", UNKNOWN),
    (S, "dev.dri", "device", "/dev/dri/renderD128", None, FAIL),
    (S, "dev.dri", "device", "/dev/dri/renderD128", "crw-rw---- gid 105 none", FAIL),
    (S, "dev.dri", "device", "/dev/dri/renderD128", DENIED, UNKNOWN),
    (M, "dev.dri", "device", "/dev/dri/renderD184", None, FAIL),
    (M, "dev.dri", "device", "/dev/dri/renderD184", "crw-rw---- gid 105 none", FAIL),
    (N, "nv.device", "device", "/dev/nvidiactl", "crw-rw-rw- gid 0 rw", FAIL),
    (S, "drv.dmesg", "command", "dmesg", "[1] amdgpu: MES failed to respond to msg=MISC (WAIT_REG_MEM)", WARN),
    (S, "drv.dmesg", "command", "dmesg", "[1] amdgpu 0000:c6:00.0: amdgpu: MES ring buffer is full.", FAIL),
    (S, "drv.dmesg", "command", "dmesg", "[1] amdgpu 0000:c6:00.0: amdgpu: [gfxhub] page fault (src_id:0)", FAIL),
    (S, "drv.dmesg", "command", "dmesg", "[1] amdgpu: GCVM_L2_PROTECTION_FAULT_STATUS:0x00841051", FAIL),
    (S, "drv.dmesg", "command", "dmesg", "[1] [drm:amdgpu_job_timedout] *ERROR* ring gfx_0.0.0 timeout", FAIL),
    (S, "drv.dmesg", "command", "dmesg", "[1] AMD-Vi: Unknown option - 'pt'", WARN),
    (S, "drv.dmesg", "command", "dmesg", "[1] amdgpu: ready\n[2] systemd[1]: page fault handled", PASS),
    (S, "drv.dmesg", "command", "dmesg", "[1] systemd[1]: page fault handled", UNKNOWN),
    (S, "drv.dmesg", "command", "dmesg", "", UNKNOWN),
    (S, "drv.dmesg", "command", "dmesg", None, UNKNOWN),
    (S, "drv.dmesg", "command", "dmesg", Problem("ended with status 1"), UNKNOWN),
    (S, "env.gfx_override", "variable", "HSA_OVERRIDE_GFX_VERSION", "11.5.1", WARN),
    (S, "env.gfx_override", "variable", "HSA_OVERRIDE_GFX_VERSION", "11.0.0", FAIL),
    (S, "env.gfx_override", "variable", "HSA_OVERRIDE_GFX_VERSION", "", PASS),
    (M, "env.gfx_override", "variable", "HSA_OVERRIDE_GFX_VERSION", "9.4.2", FAIL),
    (S, "env.xnack", "variable", "HSA_XNACK", "0", WARN),
    (S, "env.xnack", "variable", "HSA_FORCE_FINE_GRAIN_PCIE", "1", WARN),
    (M, "env.xnack", "variable", "HSA_XNACK", "1", INFO),
    (S, "env.alloc_conf", "variable", "PYTORCH_ALLOC_CONF", "expandable_segments:True", WARN),
    (S, "env.alloc_conf", "variable", "PYTORCH_ALLOC_CONF", "max_split_size_mb:512", INFO),
    (S, "env.alloc_conf", "variable", "PYTORCH_HIP_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:512", FAIL),
    (M, "env.alloc_conf", "variable", "PYTORCH_ALLOC_CONF", "expandable_segments:True", INFO),
    (S, "env.visible", "variable", "HIP_VISIBLE_DEVICES", "0", PASS),
    (S, "env.stale", "variable", "VLLM_ATTENTION_BACKEND", "TRITON_MLA", WARN),
    (C, "env.stale", "variable", "VLLM_USE_V1", "1", WARN),
    (S, "env.stale", "variable", "HSA_ENABLE_SDMA", "0", WARN),
    (S, "env.stale", "variable", "HSA_ENABLE_SDMA", "1", PASS),
    (N, "env.stale", "variable", "HSA_ENABLE_SDMA", "0", PASS),
    (M, "env.transformers", "package", "transformers", "5.3.9", PASS),
    (M, "env.transformers", "package", "transformers", "5.4.0", FAIL),
    (M, "env.transformers", "package", "transformers", "5.5.3", FAIL),
    (M, "env.transformers", "package", "transformers", "5.5.4", PASS),
    (M, "env.transformers", "package", "transformers", "4.57.6", PASS),
    (M, "env.transformers", "package", "transformers", "unknown", UNKNOWN),
    (S, "env.transformers", "package", "transformers", "5.4.0", WARN),
    (S, "env.vllm", "package", "vllm", "0.10.0", PASS),
    (S, "env.vllm", "package", "vllm", "0.10.1.1", WARN),
    (S, "env.vllm", "package", "vllm", "0.17.9+rocm", WARN),
    (S, "env.vllm", "package", "vllm", "0.18.0", PASS),
]  # fmt: skip


@pytest.mark.parametrize(("target", "id", "kind", "name", "text", "status"), OTHER)
def test_commands_devices_variables_and_packages(
    target: Target, id: str, kind: str, name: str, text: Text, status: Status
) -> None:
    assert verdict(target, id, kind, name, text) is status


def test_ubuntus_firmware_date_proves_nothing_and_the_loaded_version_decides() -> None:
    ubuntu = changed(
        STRIX,
        {("file", "/etc/os-release"): 'ID=ubuntu\nVERSION_ID="24.04"\n',
         ("command", "dpkg-firmware"): "linux-firmware 20240318.git3b128b60-0ubuntu2.27\n"},
    )  # fmt: skip
    assert check(ubuntu, "fw.pkg").status is INFO
    unread = without(ubuntu, ("file", f"{CARD}/fw_version/mes_fw_version"))
    assert check(unread, "fw.pkg").status is UNKNOWN


@pytest.mark.parametrize(("version", "status"), [("firmware-amd-graphics 20250808-1", INFO), ("x 20260110-1", PASS)])
def test_debians_firmware_package(version: str, status: Status) -> None:
    debian = {("file", "/etc/os-release"): "ID=debian\n", ("command", "dpkg-firmware"): version}
    assert check(changed(STRIX, debian), "fw.pkg").status is status


def test_mes_from_debugfs_and_from_rocm_smi() -> None:
    blind = without(STRIX, ("file", f"{CARD}/fw_version/mes_fw_version"))
    info = (
        "ME feature version: 35, firmware version: 0x00000020\nMES feature version: 1, firmware version: 0x00000083\n"
    )
    root = changed(blind, {("file", "/sys/kernel/debug/dri/1/amdgpu_firmware_info"): info})
    assert check(root, "fw.mes").status is FAIL
    smi = "GPU[0]\t\t: MES firmware version: \t0x00000080\nGPU[0]\t\t: MES KIQ firmware version: \t0x0000006f\n"
    assert check(changed(blind, {("command", "rocm-smi-showfw"): smi}), "fw.mes").status is PASS


def test_a_stuck_clock_counts_only_under_load() -> None:
    def clock(mhz: int, busy: int) -> Status:
        slow = {("file", f"{CARD}/pp_dpm_sclk"): f"1: {mhz}Mhz *\n", ("file", f"{CARD}/gpu_busy_percent"): f"{busy}\n"}
        return check(changed(STRIX, slow), "os.power").status

    assert [clock(900, 50), clock(885, 99), clock(900, 49), clock(901, 99), clock(884, 99)] == [
        WARN, WARN, PASS, PASS, PASS,
    ]  # fmt: skip


def test_gpu_count_against_what_was_asked_for() -> None:
    assert check(INSTINCT, "gpu.count", M, Ask(gpus=8)).status is PASS
    assert check(INSTINCT, "gpu.count", M, Ask(gpus=4)).status is WARN


def test_nvidia_nodes() -> None:
    good = {("device", path): "crw-rw-rw- gid 0 rw" for path in ("/dev/nvidiactl", "/dev/nvidia-uvm")}
    assert check(good, "nv.device", N).status is PASS
    assert check({**good, ("device", "/dev/nvidiactl"): "crw------- gid 0 none"}, "nv.device", N).status is FAIL


@pytest.mark.parametrize(
    ("rocr", "hip", "status"), [("0,1", "0,1", PASS), ("0,1", "0, 1", PASS), ("0,1", "1,0", WARN), ("2", "0", WARN)]
)
def test_two_lists_of_visible_gpus(rocr: str, hip: str, status: Status) -> None:
    both = {("variable", "ROCR_VISIBLE_DEVICES"): rocr, ("variable", "HIP_VISIBLE_DEVICES"): hip}
    assert check(changed(INSTINCT, both), "env.visible", M).status is status


def test_allocator_settings_by_version_and_name() -> None:
    def status(rocm: str, torch: str, **variables: str) -> Status:
        given: Bundle = {("variable", name): text for name, text in variables.items()}
        given |= {("file", "/opt/rocm/.info/version"): rocm, ("package", "torch"): torch}
        return check(changed(STRIX, given), "env.alloc_conf").status

    assert status("7.13.0", "2.11.0", PYTORCH_ALLOC_CONF="expandable_segments:True") is INFO
    assert status("7.14.0", "2.11.0", PYTORCH_ALLOC_CONF="expandable_segments:True") is WARN
    assert status("7.14.0", "2.9.0", PYTORCH_HIP_ALLOC_CONF="garbage_collection_threshold:0.9") is INFO
    both = {"PYTORCH_HIP_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "a:1"}
    assert status("7.2.0", "2.8.0", **both) is WARN


def test_torchs_own_rocm_is_known_without_importing_it() -> None:
    assert check(changed(STRIX, {("package", "torch"): "2.11.0+rocm7.14.0"}), "sys.rocm").value == "7.14.0"
    assert check(changed(STRIX, {("package", "torch"): "2.13.0+cpu"}), "sys.rocm").status is SKIP


# --- containers

OPTIONS: dict[str, Any] = {
    "Devices": [{"PathOnHost": "/dev/kfd"}, {"PathOnHost": "/dev/dri"}],
    "GroupAdd": ["105", "44"],
    "IpcMode": "host",
    "ShmSize": 67108864,
    "SecurityOpt": ["seccomp=unconfined"],
    "CapAdd": ["SYS_PTRACE"],
}
CACHES = [{"Destination": path} for path in ("/root/.cache", "/root/.aiter", "/root/.triton")]


def inspected(good: Bundle, env: list[str] | None = None, mounts: Any = CACHES, **options: Any) -> Bundle:
    data = [{"Config": {"Env": env or []}, "HostConfig": {**OPTIONS, **options}, "Mounts": mounts}]
    return changed(good, {("command", "docker-inspect"): json.dumps(data)})


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({}, PASS),
        ({"Devices": []}, FAIL),
        ({"Devices": None}, FAIL),
        ({"Devices": [{"PathOnHost": "/dev/kfd"}]}, FAIL),
        ({"Devices": [{"PathOnHost": "/dev/kfd"}, {"PathOnHost": "/dev/dri/renderD128"}]}, PASS),
        ({"Devices": [], "Privileged": True}, PASS),
        ({"IpcMode": "private"}, FAIL),
        ({"IpcMode": "private", "ShmSize": 67108865}, PASS),
        ({"SecurityOpt": None}, WARN),
        ({"CapAdd": []}, WARN),
        ({"CapAdd": ["CAP_SYS_PTRACE"]}, PASS),
        ({"Devices": "all"}, UNKNOWN),
    ],
)
def test_container_options_for_eight_gpus(options: dict[str, Any], status: Status) -> None:
    assert check(inspected(INSTINCT, **options), "ctr.flags", M).status is status


def test_little_shared_memory_is_enough_for_one_gpu() -> None:
    assert check(inspected(STRIX, IpcMode="private"), "ctr.flags").status is PASS
    assert check(inspected(STRIX, IpcMode="private"), "ctr.shm").status is PASS


@pytest.mark.parametrize(
    ("groups", "status"),
    [(["105", "44"], PASS), (None, PASS), (["render"], WARN), (["105", "video"], WARN), (["keep-groups"], PASS)],
)
def test_groups_are_numbers(groups: list[str] | None, status: Status) -> None:
    assert check(inspected(STRIX, GroupAdd=groups), "ctr.groups").status is status


@pytest.mark.parametrize(
    ("size", "status"), [(8 << 30, PASS), ((8 << 30) - 1, WARN), (0, UNKNOWN), (None, UNKNOWN), ("8g", UNKNOWN)]
)
def test_shared_memory_of_a_given_container(size: Any, status: Status) -> None:
    assert check(inspected(INSTINCT, IpcMode="private", ShmSize=size), "ctr.shm", M).status is status


@pytest.mark.parametrize(
    ("mounts", "status"),
    [(CACHES, PASS), (CACHES[:2], WARN), ([], WARN), (None, WARN), ([{"Destination": "/root"}], PASS)],
)
def test_compiled_kernels_outlive_the_container(mounts: Any, status: Status) -> None:
    assert check(inspected(STRIX, mounts=mounts), "ctr.cache").status is status


def test_a_given_containers_environment_counts_and_not_the_shells() -> None:
    bundle = changed(STRIX, {("variable", "HSA_XNACK"): "1"})
    assert check(bundle, "env.xnack").status is WARN
    assert check(inspected(bundle), "env.xnack").status is PASS
    assert check(inspected(STRIX, env=["HSA_XNACK=1", "HF_TOKEN=secret"]), "env.xnack").status is WARN


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", "null", '[{"HostConfig": 3}]', "Error: No such object: x"])
def test_what_is_no_inspection_is_no_verdict(text: str) -> None:
    bundle = changed(INSTINCT, {("command", "docker-inspect"): text})
    for id in ("ctr.flags", "ctr.groups", "ctr.shm", "ctr.cache", "env.xnack"):
        assert check(bundle, id, M).status is UNKNOWN, id


def test_on_the_host_there_is_no_container_to_judge() -> None:
    for id in ("ctr.flags", "ctr.groups", "ctr.shm", "ctr.cache"):
        assert check(INSTINCT, id, M).status is SKIP, id


def inside(mounts: str, seccomp: str = "0") -> Bundle:
    return changed(
        INSTINCT,
        {("file", "/.dockerenv"): "", ("file", "/proc/self/mounts"): mounts,
         ("file", "/proc/self/status"): f"Name:\tx\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("shm /dev/shm tmpfs rw,nosuid,size=65536k,inode64 0 0\n", WARN),
        ("shm /dev/shm tmpfs rw,size=8388608k 0 0\n", PASS),
        ("shm /dev/shm tmpfs rw,size=8388607k 0 0\n", WARN),
        ("tmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0\n", PASS),
        ("shm /dev/shm tmpfs rw,size=50% 0 0\n", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_shared_memory_seen_from_inside(line: str, status: Status) -> None:
    assert check(inside(line), "ctr.shm", M).status is status


@pytest.mark.parametrize(("seccomp", "status"), [("0", PASS), ("2", WARN), ("", UNKNOWN)])
def test_seccomp_seen_from_inside(seccomp: str, status: Status) -> None:
    assert check(inside("", seccomp), "ctr.flags", M).status is status


def test_caches_seen_from_inside() -> None:
    kept = "".join(f"server:/x {path} nfs rw 0 0\n" for path in ("/root/.cache/vllm", "/root/.aiter", "/root/.triton"))
    assert check(inside(kept), "ctr.cache", M).status is PASS
    assert check(inside("overlay / overlay rw 0 0\n"), "ctr.cache", M).status is WARN
