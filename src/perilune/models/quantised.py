"""How one weight is stored, decided by the tensors that are there and not by the config. Imports no torch.

Names and layouts of the formats: the classes in `ops/linear/formats.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models.safetensors_file import StoredTensor
from perilune.models.spec import DTYPE_BYTES, TensorSpec, WeightFormat

Shape = tuple[int, ...]
_FLOATS = ("bfloat16", "float16", "float32")
_COMMON_GROUPS = (32, 64, 128, 256)
WEIGHT_BITS = {"auto": 16, "8": 8, "16": 16}  # what a user may say, and what it comes to
INT8_GROUP = 32  # inputs per scale of what is rounded to 8 bits while it is loaded
# Medians of the golden models (tests/engine/test_bfloat16.py, docs/log.md): said whenever somebody asks for 8 bits.
INT8_COST = "logits move 3 to 6 % (in 16 bits 2 to 3 %) on the test models, by more or less on others"


@dataclass(frozen=True)
class Part:
    """One tensor of a weight as it will be held in memory, and the stored tensor it is made from.

    Of int8 both parts are made from one stored tensor. `taken` is (axis, first, last): which items of it, as they
    would be held, a rank that shares the model takes; None for all.
    """

    stored: str
    dtype: str
    shape: Shape
    taken: tuple[int, int, int] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Form:
    """One needed tensor as found: its format, its parts by field name, and what else it owns in the files.

    `group` is that of an int4 or int8 weight; `shape_name` names the tensor that repeats its shape. `local` is the
    shape of a rank's share of it (`share.cut`).
    """

    spec: TensorSpec
    format: WeightFormat
    parts: Mapping[str, Part]
    group: int = 0
    shape_name: str | None = None
    owned: frozenset[str] = field(default=frozenset())
    local: Shape | None = None

    @property
    def shape(self) -> Shape:
        """The shape the loader returns."""
        return self.spec.held_shape if self.local is None else self.local

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


def held_dtype(spec: TensorSpec, stored: str, dtype: str) -> str:
    """The dtype a dense tensor is held in when the model runs in `dtype` and the files hold `stored`."""
    return dtype if spec.keep is None else stored if spec.keep == "stored" else spec.keep


def find_form(
    spec: TensorSpec,
    stored: Mapping[str, StoredTensor],
    dtype: str,
    group_hint: int | None = None,
    weight_bits: int = 16,
) -> Form:
    """How `spec` is stored, for a model run in `dtype`; with `weight_bits` 8, how it is held: see `in_8_bits`.

    `group_hint` is the config's int4 group size: it settles what the shape of the scales leaves open.
    Raises CheckpointError when it is missing, misshapen or has the wrong dtype, UnsupportedError for a known format
    that this build cannot read; both name the stored tensor.
    """
    module = spec.stored.removesuffix(".weight")
    packed, plain = stored.get(f"{module}.weight_packed"), stored.get(spec.stored)
    if spec.quantisable and packed is not None:
        if packed.dtype == "int32":
            return _int4(spec, module, stored, group_hint)
        if packed.dtype == "uint8":
            return _mxfp4(spec, module, f"{module}.weight_packed", stored)
        raise _unsupported(f"{module}.weight_packed", f"holds {packed.dtype}, which no known format does.")
    if plain is None:
        raise _missing(spec.stored, "is stored packed, which it may not be" if packed else "is missing")
    if spec.quantisable and plain.dtype == "uint8":
        return _mxfp4(spec, module, spec.stored, stored)
    if spec.quantisable and plain.dtype == "float8_e4m3fn":
        return _fp8(spec, module, stored)
    form = _dense(spec, plain, dtype)
    return in_8_bits(form) if weight_bits == 8 and _may_be_rounded(spec) else form


def in_8_bits(form: Form) -> Form:
    """A dense matrix rounded to int8 while it is loaded, a bfloat16 scale for every 32 inputs of an output."""
    stored, (rows, columns) = form.parts["data"].stored, form.spec.shape
    parts = {
        "data": Part(stored, "int8", (rows, columns)),
        "scale": Part(stored, "bfloat16", (rows, -(-columns // INT8_GROUP))),
    }
    return Form(form.spec, "int8", parts, INT8_GROUP, owned=form.owned)


def _may_be_rounded(spec: TensorSpec) -> bool:
    """Matrices but those of experts, which checkpoints pack where that was found good, and `kv_b`, whose products
    attention takes apart."""
    return spec.quantisable and ".moe.experts." not in spec.name and not spec.name.endswith(".kv_b")


def _dense(spec: TensorSpec, plain: StoredTensor, dtype: str) -> Form:
    if plain.dtype not in _FLOATS:
        raise _wrong(spec.stored, f"is {plain.dtype}", f"one of {', '.join(_FLOATS)}")
    accepted = _squeeze(plain.shape) == _squeeze(spec.shape) if spec.held else plain.shape == spec.shape
    if not accepted:
        raise _wrong(spec.stored, f"has shape {list(plain.shape)}", f"{list(spec.shape)}")
    part = Part(spec.stored, held_dtype(spec, plain.dtype, dtype), spec.held_shape)
    return Form(spec, "dense", {"data": part}, owned=frozenset({spec.stored}))


def _int4(spec: TensorSpec, module: str, stored: Mapping[str, StoredTensor], hint: int | None) -> Form:
    rows, columns = spec.shape
    names = {key: f"{module}.weight_{key}" for key in ("packed", "scale", "zero_point", "shape", "g_idx")}
    if names["g_idx"] in stored:
        raise _unsupported(names["g_idx"], "reorders inputs by activation, which this build does not read.")
    packed, scale = stored[names["packed"]], _need(names["scale"], stored)
    if packed.shape == (rows, -(-columns // 4)):
        raise _unsupported(names["packed"], "holds 8 bits per weight; only 4 are read.")
    _expect(names["packed"], packed, (rows, -(-columns // 8)), ("int32",))
    _expect(names["scale"], scale, (rows, scale.shape[-1] if scale.shape else 0), _FLOATS)
    group = _group_size(names["scale"], columns, scale.shape[-1], hint)
    parts = {
        "packed": Part(names["packed"], "int32", packed.shape),
        "scale": Part(names["scale"], scale.dtype, scale.shape),
    }
    if zero := stored.get(names["zero_point"]):
        _expect(names["zero_point"], zero, (-(-rows // 8), scale.shape[-1]), ("int32",))
        parts["zero"] = Part(names["zero_point"], "int8", scale.shape)
    if shape := stored.get(names["shape"]):
        _expect(names["shape"], shape, (2,), ("int32", "int64"))
    owned = frozenset(name for name in names.values() if name in stored)
    return Form(spec, "int4", parts, group, names["shape"] if shape else None, owned)


def _group_size(name: str, columns: int, groups: int, hint: int | None) -> int:
    """The group size that cuts `columns` into `groups`; the last group may be short."""
    even = [columns // groups] if groups and columns % groups == 0 else []
    for size in (*([hint] if hint else []), *even, *_COMMON_GROUPS):
        if -(-columns // size) == groups:
            return size
    raise _wrong(name, f"has {groups} groups for {columns} inputs", "a scale per group of equal size")


def _mxfp4(spec: TensorSpec, module: str, name: str, stored: Mapping[str, StoredTensor]) -> Form:
    rows, columns = spec.shape
    scale_name = f"{module}.weight_scale"
    if f"{module}.weight_global_scale" in stored:
        raise _unsupported(f"{module}.weight_global_scale", "belongs to NVFP4, which this build does not read.")
    packed, scale = stored[name], _need(scale_name, stored)
    blocks = -(-columns // 32)
    if len(scale.shape) == 2 and scale.shape[1] == blocks and 0 < scale.shape[0] < rows:
        raise _unsupported(scale_name, f"has one row of scales for several of {rows} outputs (Quark's [R, 32] blocks).")
    if columns % 2:
        raise _unsupported(name, f"packs {columns} inputs two to a byte; an odd number cannot be.")
    _expect(name, packed, (rows, columns // 2), ("uint8",))
    _expect(scale_name, scale, (rows, blocks), ("uint8", "float8_e8m0fnu"))
    parts = {"packed": Part(name, "uint8", packed.shape), "scale": Part(scale_name, "uint8", scale.shape)}
    shape_name = f"{module}.weight_shape"
    extra = {shape_name} & stored.keys()
    return Form(
        spec, "mxfp4", parts, shape_name=shape_name if extra else None, owned=frozenset({name, scale_name} | extra)
    )


def _fp8(spec: TensorSpec, module: str, stored: Mapping[str, StoredTensor]) -> Form:
    rows, columns = spec.shape
    scale_name = f"{module}.weight_scale_inv"
    if scale_name not in stored and f"{module}.weight_scale" in stored:
        raise _unsupported(f"{module}.weight_scale", "scales fp8 per output or tensor; only 128 x 128 blocks are read.")
    data, scale = stored[spec.stored], _need(scale_name, stored)
    _expect(spec.stored, data, (rows, columns), ("float8_e4m3fn",))
    _expect(scale_name, scale, (-(-rows // 128), -(-columns // 128)), ("float32", "bfloat16"))
    parts = {
        "data": Part(spec.stored, "float8_e4m3fn", data.shape),
        "scale_inv": Part(scale_name, "float32", scale.shape),
    }
    return Form(spec, "fp8_block", parts, owned=frozenset({spec.stored, scale_name}))


def _squeeze(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _need(name: str, stored: Mapping[str, StoredTensor]) -> StoredTensor:
    if name not in stored:
        raise _missing(name, "is missing")
    return stored[name]


def _expect(name: str, tensor: StoredTensor, shape: Shape, dtypes: tuple[str, ...]) -> None:
    if tensor.shape != shape:
        raise _wrong(name, f"has shape {list(tensor.shape)}", str(list(shape)))
    if tensor.dtype not in dtypes:
        raise _wrong(name, f"is {tensor.dtype}", " or ".join(dtypes))


def _missing(name: str, state: str) -> CheckpointError:
    return CheckpointError(f"{name} {state}.", "The model needs it.", "Download the checkpoint again, or correct it.")


def _wrong(name: str, found: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{name} {found}; the config asks for {wanted}.", "", "Use the config.json of these weights."
    )


def _unsupported(name: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{name} cannot be read.", f"It {why}", "Choose another quantisation of this model.")
