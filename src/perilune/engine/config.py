"""How one engine is set up: a frozen dataclass whose every derived value can say why. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from perilune.cache.budget import CachePlan, plan_cache
from perilune.cache.geometry import PAGE_TOKENS, CacheGeometry
from perilune.cache.prefix import PrefixSettings
from perilune.engine.roles import RoleConfig
from perilune.errors import ConfigError, nearest
from perilune.models.quantised import INT8_COST, WEIGHT_BITS
from perilune.models.share import Share, narrow
from perilune.models.spec import ModelSpec
from perilune.units import GIB, format_bytes

DTYPES = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
KERNELS = ("auto", "reference", "triton")


@dataclass(frozen=True)
class EngineConfig:
    """What a user decides. `max_context=None` takes the model's own limit, capped by `DEFAULT_CONTEXT`.

    `dtype="auto"` is the checkpoint's dtype. `prefill_chunk` is the most prompt tokens per step, a multiple of 64.
    `cache_bytes` caps both arenas together. `prefix_cache` keeps what prompts left behind for the next one with the
    same beginning; `snapshot_slots` is how many states beyond the running ones there is room for (None: derived),
    `cache_host_bytes` how much host memory beside the arenas takes what makes way in them (None: none),
    `cache_dir` a folder where prefixes outlive the process, of `cache_disk_bytes` at most for all models together,
    `snapshot_interval` how many tokens of a long prefill lie between two of them. `max_waiting` caps the queue;
    `threads=None` uses one per physical core.
    `kernels` is "auto", the fastest there is for each op, "reference", plain torch for all, or "triton", the GPU's,
    which a CPU can only interpret (TRITON_INTERPRET=1: for tests). `weight_bits` "8" rounds dense matrices to int8
    while they are loaded, but those of experts; "auto" is "16", as the checkpoint has them. `hold_embedding`: also on a
    CPU the embedding is in memory, whose rows are else read from its file as tokens need them: for a slow disk.
    `device` is cpu, cuda (or cuda:N), or auto: a GPU if torch has one. `eager` records no decode steps to be replayed.
    An engine whose GPU does not answer for `gpu_seconds` ends, or whose compiler takes longer than `compile_seconds`
    for a kernel; after every `gpu_marks` kernels it is seen how far a step has come, so that what hangs is named.
    `tp` ranks share the model, each a process with `threads` of its own and a cache of `cache_bytes`; with `ep` each
    holds whole experts. A rank that keeps the others waiting for `rank_seconds` ends the engine.
    `pd`: how it hands over caches to other engines and takes theirs; None: not at all.
    Raises ConfigError for a value out of range.
    """

    model: str
    dtype: str = "auto"
    device: str = "cpu"
    max_context: int | None = None
    max_running: int = 8
    cache_bytes: int | None = None
    prefill_chunk: int = 512
    max_waiting: int = 1024
    threads: int | None = None
    prefix_cache: bool = True
    snapshot_slots: int | None = None
    snapshot_interval: int = 8192
    kernels: str = "auto"
    weight_bits: str = "auto"
    hold_embedding: bool = False
    cache_host_bytes: int | None = None
    cache_dir: str | None = None
    cache_disk_bytes: int = 16 * GIB
    tp: int = 1
    ep: bool = False
    rank_seconds: int = 120
    eager: bool = False
    gpu_seconds: int = 60
    compile_seconds: int = 300
    gpu_marks: int = 16
    pd: RoleConfig | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is not known.", nearest(self.dtype, DTYPES))
        if self.kernels not in KERNELS:
            raise ConfigError(f"kernels {self.kernels!r} is not known.", nearest(self.kernels, KERNELS))
        if self.weight_bits not in WEIGHT_BITS:
            raise ConfigError(
                f"weight_bits {self.weight_bits!r} is not known.", "", f"Known: {', '.join(WEIGHT_BITS)}."
            )
        kind, colon, index = self.device.partition(":")
        if kind not in DEVICES or (colon and (kind != "cuda" or not index.isdecimal())):
            raise ConfigError(
                f"device {self.device!r} is not known.",
                "GPUs are called cuda, AMD's too, as torch calls them; cuda:1 is the second one.",
                nearest(kind, DEVICES),
            )
        for name in (
            "max_context",
            "max_running",
            "cache_bytes",
            "prefill_chunk",
            "max_waiting",
            "threads",
            "cache_host_bytes",
            "cache_disk_bytes",
            "tp",
            "rank_seconds",
            "gpu_seconds",
            "compile_seconds",
            "gpu_marks",
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}.")
        for name in ("prefill_chunk", "snapshot_interval"):
            value = getattr(self, name)
            if type(value) is not int or value < PAGE_TOKENS or value % PAGE_TOKENS:
                raise ConfigError(
                    f"{name} must be a multiple of {PAGE_TOKENS}, not {value!r}.",
                    "Prompts are cut only at chunk boundaries, so that a cut changes no bit of the result.",
                )
        for name in ("cache_dir", "cache_host_bytes"):
            if getattr(self, name) is not None and not self.prefix_cache:
                raise ConfigError(
                    f"{name} keeps what the prefix cache has, and that is off.", "", "Leave out one of the two."
                )
        for name in ("prefix_cache", "ep", "eager", "hold_embedding"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        if self.ep and self.tp == 1:
            raise ConfigError("ep shares experts among ranks, and there is one.", "", "Set tp too, or leave out ep.")
        if self.snapshot_slots is not None and (type(self.snapshot_slots) is not int or self.snapshot_slots < 0):
            raise ConfigError(f"snapshot_slots must be a whole number of at least 0, not {self.snapshot_slots!r}.")

    @staticmethod
    def of(model: str, **settings: Any) -> EngineConfig:
        """An unknown setting is a ConfigError that names the nearest valid one."""
        valid = [f.name for f in dataclasses.fields(EngineConfig)]
        for name in settings:
            if name not in valid:
                raise ConfigError(f"Unknown setting {name!r}.", nearest(name, valid))
        return EngineConfig(model=model, **settings)


DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class EnginePlan:
    """What was derived from a config and a spec, each with its reason in `because`."""

    dtype: str
    max_context: int
    cache: CachePlan
    because: tuple[str, ...]
    prefix: PrefixSettings | None = None
    weight_bits: int = 16


def plan_engine(config: EngineConfig, spec: ModelSpec) -> EnginePlan:
    """The numbers the engine will allocate. `perilune plan` asks the same functions. Raises ConfigError."""
    because = []
    dtype = spec.dtype if config.dtype == "auto" else config.dtype
    because.append(f"dtype {dtype}: " + ("the checkpoint's own" if config.dtype == "auto" else "as set"))
    if config.max_context is None:
        context = min(spec.max_context, DEFAULT_CONTEXT)
        why = (
            "the model's limit" if context == spec.max_context else f"the default; the model allows {spec.max_context}"
        )
    elif config.max_context > spec.max_context:
        raise ConfigError(
            f"max_context {config.max_context} is more than the model's {spec.max_context}.",
            "The checkpoint's config sets the limit.",
            f"Set max_context to {spec.max_context} or less.",
        )
    else:
        context, why = config.max_context, "as set"
    bits = WEIGHT_BITS[config.weight_bits]
    if bits == 8:
        because.append(
            f"weights int8: as set; dense matrices but those of experts, one scale per 32 inputs; {INT8_COST}"
        )
    for rank in range(config.tp):
        narrow(spec, Share(config.tp, rank, config.ep))  # refuses what the ranks cannot share
    if config.tp > 1:
        because.append(f"{config.tp} ranks: as set; experts shared {'whole' if config.ep else 'by width'}")
    geometry = CacheGeometry.of(spec, dtype, config.tp)
    snapshots = config.snapshot_slots if config.prefix_cache and geometry.states else None
    if not config.prefix_cache:
        snapshots = 0
    cache = plan_cache(geometry, context, config.max_running, config.cache_bytes, snapshots)
    prefix = PrefixSettings(bool(geometry.states), config.snapshot_interval) if config.prefix_cache else None
    because.append(f"context {cache.max_context}: {why}")
    because.extend(cache.because)
    if config.cache_host_bytes is not None:
        because.append(f"{format_bytes(config.cache_host_bytes)} of host memory for what makes way: as set")
    if config.cache_dir is not None:
        because.append(f"prefixes in {config.cache_dir}, up to {format_bytes(config.cache_disk_bytes)}: as set")
    if prefix is None:
        because.append("no prefix cache: as set")
    return EnginePlan(dtype, cache.max_context, cache, tuple(because), prefix, bits)
