"""From a model's folder or config.json to its Plan. Imports no torch.

Weights are counted from the checkpoint's headers where its files are, else from what the config says they will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perilune.cache.geometry import CacheGeometry
from perilune.errors import ConfigError
from perilune.models.checkpoint import INDEX, SINGLE, Checkpoint
from perilune.models.config import ConfigFiles, read_config, read_json
from perilune.models.estimate import estimated_weight_bytes
from perilune.models.holding import leaves_embedding
from perilune.models.quantised import INT8_COST, WEIGHT_BITS
from perilune.models.share import WHOLE, Share, narrow
from perilune.models.spec import DTYPE_BYTES
from perilune.plan.device import Machine
from perilune.plan.plan import Plan, plan_model

DEFAULT_CONTEXT = 8192


def plan_folder(
    path: Path,
    machine: Machine,
    *,
    context: int | None = None,
    concurrency: int = 8,
    dtype: str = "auto",
    weight_bits: str = "auto",
    hold_embedding: bool = False,
    prefix_cache: bool = True,
    tp: int = 1,
    ep: bool = False,
) -> Plan:
    """Plan the model at `path`, a folder or a config.json, on `machine`.

    `context=None` is the engine's default, or the model's limit if that is less; `dtype="auto"` the checkpoint's own;
    `weight_bits` "auto" (16), "8" or "16", `hold_embedding`, and `tp` ranks, with `ep` by whole experts, as the engine
    takes them.
    Raises CheckpointError or UnsupportedError for a model that cannot be read, ConfigError as `plan_model`.
    """
    files = read_config(path)
    kept = files.spec.dtype if dtype == "auto" else dtype
    CacheGeometry.of(files.spec, kept)  # refuses an unknown dtype before weights are counted in it
    shares = [Share(tp, rank, ep) for rank in range(tp)]
    for share in shares:
        narrow(files.spec, share)  # refuses what ranks cannot share
    if weight_bits not in WEIGHT_BITS:
        raise ConfigError(f"weight_bits {weight_bits!r} is not known.", "", f"Known: {', '.join(WEIGHT_BITS)}.")
    bits = WEIGHT_BITS[weight_bits]
    weights = count_weights(path, files, kept, bits, shares, hold_embedding=hold_embedding or machine.gpu)
    return plan_model(
        files.spec,
        machine,
        context=min(files.spec.max_context, DEFAULT_CONTEXT) if context is None else context,
        concurrency=concurrency,
        weights_bytes=weights.held,
        weights_source=weights.source,
        file_bytes=weights.left,
        dtype=kept,
        weight_bits=bits,
        prefix_cache=prefix_cache,
        ep=ep,
    )


@dataclass(frozen=True)
class WeightCount:
    """Bytes that each share has in memory, `left` those of embeddings whose rows stay in the checkpoint's files."""

    held: list[int]
    left: list[int]
    source: str


def count_weights(
    path: Path,
    files: ConfigFiles,
    dtype: str,
    weight_bits: int = 16,
    shares: Sequence[Share] = (WHOLE,),
    *,
    hold_embedding: bool,
) -> WeightCount:
    """The weights of each share of a model run in `dtype`.

    Raises CheckpointError if all files are there and one is broken: the engine could not load it either.
    """
    missing = _missing(path)
    if missing is None:
        checkpoint = Checkpoint.open(path)
        leave = leaves_embedding(checkpoint.spec, hold=hold_embedding)
        held = [checkpoint.weight_bytes(dtype, weight_bits, share, leave) for share in shares]
        left = [checkpoint.embedding_bytes(share) if leave else 0 for share in shares]
        source = f"from the checkpoint's tensors, packed ones kept packed{_rounded(weight_bits)}"
    else:
        spec, leave = files.spec, leaves_embedding(files.spec, hold=hold_embedding)
        held = [estimated_weight_bytes(files.config, spec, dtype, weight_bits, share, leave) for share in shares]
        rows = [len(share.of(spec.vocab)) if leave else 0 for share in shares]
        left = [count * spec.hidden * DTYPE_BYTES[spec.dtype] for count in rows]
        source = f"from the config's shapes{_rounded(weight_bits)}; {missing}"
    return WeightCount(held, left, source)


def _rounded(weight_bits: int) -> str:
    return f", dense matrices but those of experts rounded to int8: {INT8_COST}" if weight_bits == 8 else ""


def _missing(path: Path) -> str | None:
    """Why the weights cannot be counted here, or None if every file is there."""
    if path.is_file():
        return "only the config was given"
    if not (path / INDEX).is_file():
        return None if (path / SINGLE).is_file() else "no weights lie beside it"
    weight_map = read_json(path / INDEX).get("weight_map")
    shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    absent = [shard for shard in shards if not (path / str(shard)).is_file()]
    return f"{len(absent)} of {len(shards)} shards are not here yet" if absent else None
