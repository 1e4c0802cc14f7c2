"""Weight bytes from a config alone, for a model whose files are not here yet. Imports no torch.

The config's quantisation is turned into the tensors a checkpoint of it would store; from there on the path is the one
real checkpoints take, so that estimate and loader cannot disagree about a format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models.config import quantisation
from perilune.models.families import family_of
from perilune.models.holding import EMBEDDING
from perilune.models.quantised import find_form
from perilune.models.safetensors_file import StoredTensor
from perilune.models.share import WHOLE, Share, cut
from perilune.models.spec import ModelSpec, MoeSpec, TensorSpec, WeightFormat

_NOWHERE = Path("config.json")


@dataclass(frozen=True)
class Scheme:
    """What a quantization_config says: `format` for every linear module that `ignore` does not name.

    `targets` are patterns too; empty means all. Patterns: `re:` and a regular expression, a name, a name with `*`.
    """

    format: WeightFormat
    group: int
    symmetric: bool
    ignore: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def covers(self, module: str) -> bool:
        """Whether the linear module is packed."""
        if self.format == "fp8_block" and module.endswith("lm_head"):
            return False  # fp8 exporters leave the head alone and do not say so
        return not _named(module, self.ignore) and (not self.targets or _named(module, self.targets))


def estimated_weight_bytes(
    config: Mapping[str, Any],
    spec: ModelSpec,
    dtype: str,
    weight_bits: int = 16,
    share: Share = WHOLE,
    leave_embedding: bool = False,
) -> int:
    """Bytes of a rank's weights once loaded for a model run in `dtype`, as `Checkpoint.weight_bytes` would count them.

    Raises UnsupportedError for a quantisation this build cannot read, ConfigError for a share that cannot be had.
    """
    scheme = read_scheme(config)
    experts = [len(share.experts(layer.ffn.experts)) if isinstance(layer.ffn, MoeSpec) else 0 for layer in spec.layers]
    group = scheme.group if scheme else None
    return sum(
        cut(find_form(tensor, dict(_stored(tensor, scheme, spec.dtype)), dtype, group, weight_bits), share).nbytes
        * count
        for tensor, count in _distinct(spec, experts)
        if not (leave_embedding and tensor.name == EMBEDDING)
    )


def _distinct(spec: ModelSpec, experts: list[int]) -> Iterator[tuple[TensorSpec, int]]:
    """Every needed tensor with its count; a layer's first expert stands for all of them."""
    for tensor in family_of(spec).tensors(spec):
        match = re.match(r"layers\.(\d+)\.moe\.experts\.(\d+)\.", tensor.name)
        if match is None:
            yield tensor, 1
        elif match[2] == "0":
            yield tensor, experts[int(match[1])]


def read_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """The quantisation a config announces, or None. Raises UnsupportedError naming one that cannot be read."""
    found = quantisation(dict(config))
    method = found.get("quant_method")
    if not found:
        return None
    if method == "compressed-tensors":
        return _compressed_tensors(found)
    if method == "quark":
        return _quark(found)
    if method == "fp8" and found.get("weight_block_size") == [128, 128]:
        ignore = found.get("modules_to_not_convert") or found.get("ignored_layers")
        return Scheme("fp8_block", 128, True, _patterns(ignore))
    raise _unsupported(f"quant_method {method!r}" + (" without 128 x 128 blocks" if method == "fp8" else ""))


def _compressed_tensors(found: Mapping[str, Any]) -> Scheme:
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _unsupported("a compressed-tensors config without exactly one group")
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise _unsupported("a compressed-tensors group without weights")
    kind = (weights.get("type"), weights.get("num_bits"), weights.get("group_size"))
    targets = tuple(t for t in _patterns(group.get("targets")) if t != "Linear")
    ignore, symmetric = _patterns(found.get("ignore")), weights.get("symmetric") is not False
    if kind == ("float", 4, 32):
        return Scheme("mxfp4", 32, True, ignore, targets)
    if kind[:2] == ("int", 4) and type(kind[2]) is int and kind[2] > 0:
        return Scheme("int4", kind[2], symmetric, ignore, targets)
    raise _unsupported(f"compressed-tensors weights of type {kind[0]}, {kind[1]} bits, group {kind[2]}")


def _quark(found: Mapping[str, Any]) -> Scheme:
    outer = found.get("global_quant_config")
    weight = outer.get("weight") if isinstance(outer, dict) else None
    if not isinstance(weight, dict) or weight.get("dtype") != "fp4" or weight.get("group_size") != 32:
        raise _unsupported("a Quark config whose weights are not fp4 in groups of 32")
    return Scheme("mxfp4", 32, True, _patterns(found.get("exclude")))


def _stored(tensor: TensorSpec, scheme: Scheme | None, dtype: str) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors a checkpoint of this scheme stores for `tensor`."""
    module = tensor.stored.removesuffix(".weight")
    if not tensor.quantisable or scheme is None or not scheme.covers(module):
        yield tensor.stored, _fake(tensor.keep if tensor.keep == "float32" else dtype, tensor.shape)
        return
    rows, columns = tensor.shape
    groups = math.ceil(columns / scheme.group)
    if scheme.format == "int4":
        yield f"{module}.weight_packed", _fake("int32", (rows, math.ceil(columns / 8)))
        yield f"{module}.weight_scale", _fake(dtype, (rows, groups))
        if not scheme.symmetric:
            yield f"{module}.weight_zero_point", _fake("int32", (math.ceil(rows / 8), groups))
    elif scheme.format == "mxfp4":
        yield tensor.stored, _fake("uint8", (rows, columns // 2))
        yield f"{module}.weight_scale", _fake("uint8", (rows, groups))
    else:
        yield tensor.stored, _fake("float8_e4m3fn", tensor.shape)
        yield f"{module}.weight_scale_inv", _fake("float32", (math.ceil(rows / 128), groups))


def _fake(dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(_NOWHERE, dtype, shape, 0, 0)


def _patterns(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _named(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern names the module or something it lies in. Configs write names with or without the prefix."""
    names = (module, module.removeprefix("language_model."))
    return any(_matches(name, pattern) for pattern in patterns for name in names)


def _matches(name: str, pattern: str) -> bool:
    if not pattern.startswith("re:"):
        return name == pattern or name.startswith(f"{pattern}.") or ("*" in pattern and fnmatchcase(name, pattern))
    try:
        return re.match(pattern.removeprefix("re:"), name) is not None
    except re.error as error:
        raise CheckpointError(
            f"config.json: {pattern!r} in the quantization_config is not a pattern.", f"{error}.", "Correct it."
        ) from error


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"config.json: {what} cannot be read.",
        "Known: compressed-tensors int4 and mxfp4, Quark mxfp4, fp8 in 128 x 128 blocks.",
        "Choose another quantisation of this model.",
    )
