"""A checkpoint folder: which tensors it stores, whether they are the ones the model needs. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from perilune.errors import CheckpointError, PeriluneError, UnsupportedError
from perilune.models.config import int4_groups, quantisation, read_config, read_json
from perilune.models.families import family_of
from perilune.models.holding import EMBEDDING, Held, hold
from perilune.models.quantised import Form, find_form
from perilune.models.safetensors_file import StoredTensor, read_header
from perilune.models.share import WHOLE, Share, cut
from perilune.models.spec import DTYPE_BYTES, ModelSpec, TensorSpec, WeightFormat

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_LISTED = 5


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: `stored` maps every stored name to its place; no tensor has been read."""

    path: Path
    spec: ModelSpec
    config: dict[str, Any]
    stored: Mapping[str, StoredTensor]

    @staticmethod
    def open(path: Path | str) -> Checkpoint:
        """Read config, index and all headers of the folder `path`.

        Raises CheckpointError for a missing or broken file, UnsupportedError for a model this build cannot compute.
        """
        folder = Path(path)
        files, stored = read_config(folder), _read_stored(folder)
        return Checkpoint(folder, _with_stored_head(files.spec, stored), files.config, stored)

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor the model needs."""
        return tuple(family_of(self.spec).tensors(self.spec))

    def form_of(self, tensor: TensorSpec, dtype: str | None = None, weight_bits: int = 16) -> Form:
        """How `tensor` is stored, or held in memory if `weight_bits` is 8. Raises as `find_form`."""
        return find_form(tensor, self.stored, dtype or self.spec.dtype, self._int4_group, weight_bits)

    def format_of(self, tensor: TensorSpec) -> WeightFormat:
        """The format `tensor` is stored in."""
        return self.form_of(tensor).format

    def check(self) -> None:
        """Raise, naming up to five tensors, unless the stored tensors are exactly the needed ones.

        CheckpointError for a tensor that is missing, extra or has the wrong shape or dtype; UnsupportedError for a
        format that cannot be read.
        """
        problems: list[PeriluneError] = []
        owned: set[str] = set()
        for tensor in self.tensors:
            try:
                owned |= self.form_of(tensor).owned
            except (CheckpointError, UnsupportedError) as error:
                problems.append(error)
        unsupported = next((error for error in problems if isinstance(error, UnsupportedError)), None)
        if unsupported:
            raise unsupported
        extra = self._extra(owned) if not problems else []
        lines = [error.what for error in problems] + [f"{name} is not part of the model." for name in extra]
        if lines:
            more = len(lines) - _LISTED
            raise CheckpointError(
                f"{self.path} does not match its config.json.",
                " ".join(lines[:_LISTED]) + (f" And {more} more." if more > 0 else ""),
                "Use the config.json of these weights, or download the checkpoint again.",
            )

    def held(
        self, dtype: str, weight_bits: int = 16, share: Share = WHOLE, leave_embedding: bool = False
    ) -> list[Held]:
        """What the loader will hold of `share` for a model run in `dtype`, experts stacked; without the embedding if
        its rows stay in their file.

        Raises as `check`, and ConfigError where a tensor cannot be cut.
        """
        tensors = [
            tensor
            for tensor in self.tensors
            if share.holds(tensor) and not (leave_embedding and tensor.name == EMBEDDING)
        ]
        return hold(cut(self.form_of(tensor, dtype, weight_bits), share) for tensor in tensors)

    def weight_bytes(
        self, dtype: str, weight_bits: int = 16, share: Share = WHOLE, leave_embedding: bool = False
    ) -> int:
        """Bytes of a rank's weights once loaded for a model run in `dtype` ("float32", "bfloat16", ...), exactly."""
        return sum(held.nbytes for held in self.held(dtype, weight_bits, share, leave_embedding))

    def embedding(self, dtype: str, share: Share = WHOLE) -> Form:
        """What `share` reads of the embedding, for a model run in `dtype`. Raises as `held`."""
        table = next(tensor for tensor in self.tensors if tensor.name == EMBEDDING)
        return cut(self.form_of(table, dtype), share)

    def embedding_bytes(self, share: Share = WHOLE) -> int:
        """Bytes that these rows take in their file."""
        [part] = self.embedding(self.spec.dtype, share).parts.values()
        return math.prod(part.shape) * DTYPE_BYTES[self.stored[part.stored].dtype]

    def _extra(self, owned: set[str]) -> list[str]:
        skips = family_of(self.spec).skips
        return [name for name in self.stored if name not in owned and not skips(name, self.spec)]

    @cached_property
    def _int4_group(self) -> int | None:
        return int4_groups(quantisation(self.config))


def _with_stored_head(spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> ModelSpec:
    """A head that is stored is used, also where the config calls it tied: readers disagree, and it may differ."""
    untied = replace(spec, tied_embedding=False)
    head = next(tensor.stored for tensor in family_of(spec).tensors(untied) if tensor.name == "lm_head")
    return untied if head in stored else spec


def _read_stored(folder: Path) -> dict[str, StoredTensor]:
    if (folder / INDEX).is_file():
        return _read_shards(folder, read_json(folder / INDEX).get("weight_map"))
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    raise CheckpointError(
        f"{folder} holds no weights.",
        f"Neither {INDEX} nor {SINGLE} is there; other formats are not read.",
        "Download the checkpoint's safetensors files.",
    )


def _read_shards(folder: Path, weight_map: object) -> dict[str, StoredTensor]:
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map.", "", "Download the file again.")
    stored: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in _read_shard(folder, file).items():
            # A name may lie in two shards; the index says which one counts.
            if weight_map.get(name, file) == file:
                stored[name] = tensor
    for name, file in weight_map.items():
        if name not in stored:
            raise CheckpointError(
                f"{name} is missing from {file}.", f"{INDEX} says it is there.", "Download the file again."
            )
    return stored


def _read_shard(folder: Path, file: str) -> dict[str, StoredTensor]:
    if Path(file).name != file:
        raise CheckpointError(
            f"{folder / INDEX} names {file!r}.", "Shards lie in the same folder.", "Correct the index."
        )
    if not (folder / file).is_file():
        raise CheckpointError(f"{folder / file} is missing.", f"{INDEX} names it.", "Download the missing shard.")
    return read_header(folder / file)
