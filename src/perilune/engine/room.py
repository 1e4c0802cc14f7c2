"""Whether an engine fits what its device has free, asked before a byte is loaded."""

from __future__ import annotations

import torch

from perilune.engine.config import EngineConfig, EnginePlan
from perilune.errors import ConfigError
from perilune.host.memory import available_memory
from perilune.models.checkpoint import Checkpoint
from perilune.models.share import Share, narrow
from perilune.ops.staging import shares_memory
from perilune.plan.workspace import PROCESS_BYTES, gpu_workspace
from perilune.units import format_bytes


def check_room(config: EngineConfig, checkpoint: Checkpoint, plan: EnginePlan, device: torch.device) -> tuple[str, ...]:
    """What to say of the memory of a rank's GPU; nothing of a CPU's, which is given as it is touched.

    Raises ConfigError if weights, cache and workspace are more than is free: `need_of` of the rank that needs most.
    """
    if device.type == "cpu":
        return ()
    free, _ = torch.cuda.mem_get_info(device)
    source = f"free on {device}"
    if shares_memory(device):
        host, says = available_memory()
        free, source = min((free, source), (host - PROCESS_BYTES, f"{says}, which {device} shares"))
    return (fitting(config, checkpoint, plan, free, source),)


def fitting(config: EngineConfig, checkpoint: Checkpoint, plan: EnginePlan, free: int, source: str) -> str:
    """A line with the numbers. Raises ConfigError with them if they do not fit into `free` bytes."""
    shares = [Share(config.tp, rank, config.ep) for rank in range(config.tp)]
    weights, share = max(((checkpoint.weight_bytes(plan.dtype, plan.weight_bits, s), s) for s in shares), key=_first)
    work = gpu_workspace(narrow(checkpoint.spec, share), config.prefill_chunk).total(plan.cache.slots)
    need = weights + plan.cache.total_bytes + work
    parts = (
        f"weights {format_bytes(weights)}, cache {format_bytes(plan.cache.total_bytes)}, workspace {format_bytes(work)}"
    )
    if need > free:
        spare = free - weights - work
        fix = f"A cache of {format_bytes(spare)} would fit" if spare > 0 else "The weights alone do not fit"
        raise ConfigError(
            f"The engine needs {format_bytes(need)} ({parts}); {format_bytes(free)} are {source}.",
            f"{fix}.",
            "Lower max_context or max_running, set cache_bytes, or share the model with tp; see `perilune plan`.",
        )
    return f"{format_bytes(need)} of {format_bytes(free)} {source}: {parts}"


def _first(pair: tuple[int, Share]) -> int:
    return pair[0]
