"""What the planner says of a launch: does it fit, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perilune.deploy.condition import Truth
from perilune.deploy.launch import Launch
from perilune.errors import PeriluneError
from perilune.host.memory import available_memory
from perilune.host.profiles import profile
from perilune.models.hub import resolve_config_only
from perilune.plan.device import machine_of
from perilune.plan.folder import plan_folder
from perilune.plan.vllm import VllmPlan
from perilune.plan.vllm_folder import plan_folder_vllm
from perilune.units import format_bytes


@dataclass(frozen=True)
class Planned:
    """Whether it fits, in one sentence; `need` is the memory the GPU must give, None where that is not known."""

    fits: Truth
    says: str
    need: int | None = None


def planned(launch: Launch, config: Path | None = None) -> Planned:
    """Plan `launch` on its host's device, or on this machine if it has no profile's memory.

    `config` is a model folder or config.json; else the hub is asked. Whatever cannot be planned is unknown, not fine.
    """
    source = str(config) if config else launch.recipe.config or launch.checkpoint
    try:
        return _planned(launch, resolve_config_only(source))
    except PeriluneError as error:
        return Planned(Truth.UNKNOWN, f"no plan could be made: {error.what} {error.why}".strip())


def _planned(launch: Launch, path: Path) -> Planned:
    recipe, point = launch.recipe, launch.point
    device = profile(recipe.host)
    machine = machine_of(device, None if device.memory is not None else available_memory())
    memory, source = machine.memory, device.title if device.memory is not None else machine.source
    if path.suffix == ".gguf":
        size = path.stat().st_size
        fits = Truth.NO if size > memory else Truth.UNKNOWN
        words = f"the file alone is {format_bytes(size)} of {format_bytes(memory)}; a GGUF's cache is not planned"
        return Planned(fits, words, size)
    if recipe.engine == "vllm":
        share = recipe.utilization
        theirs = plan_folder_vllm(
            path, memory=memory, context=point.context, concurrency=point.concurrency, tp=point.tp, utilization=share,
            prefix_cache=False,
        )  # fmt: skip
        return Planned(Truth.YES if theirs.fits else Truth.NO, _vllm_words(theirs, source), theirs.budget_bytes)
    plan = plan_folder(
        path, machine, context=point.context, concurrency=point.concurrency,
        prefix_cache=recipe.engine == "perilune", tp=point.tp if recipe.engine == "perilune" else 1,
    )  # fmt: skip
    about = "" if recipe.engine == "perilune" else f", by perilune's own arithmetic and not {recipe.engine}'s"
    words = (
        f"{point.concurrency} x {point.context} tokens need {format_bytes(plan.total_bytes)} of "
        f"{format_bytes(plan.memory_bytes)} ({source}){about}; {plan.because['fits']}"
    )
    return Planned(Truth.YES if plan.fits else Truth.NO, words, plan.total_bytes)


def _vllm_words(plan: VllmPlan, source: str) -> str:
    each = "on each GPU " if plan.tp > 1 else ""
    return (
        f"{plan.concurrency} x {plan.context} tokens need {format_bytes(plan.concurrency * plan.sequence_bytes)} of "
        f"cache {each}beside {format_bytes(plan.weights_bytes)} of weights, and {format_bytes(plan.cache_bytes)} are "
        f"left of {plan.utilization:.0%} of {format_bytes(plan.memory_bytes)} ({source}); "
        f"blocks of {plan.block_tokens} tokens lose {format_bytes(plan.lost_bytes)}"
    )
