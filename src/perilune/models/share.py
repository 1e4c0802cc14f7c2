"""What one tensor-parallel rank holds of a model: its heads, its stretch of widths and vocabulary, its experts.

Heads are shared equally. Widths and the vocabulary are cut where kernels and packed formats like it, at multiples of
32, so that one rank may get one such stretch more than another. Experts are shared by width, or whole (`ep`). Norms,
the router, gates' narrow middles and what makes the latents are on every rank. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from perilune.errors import ConfigError
from perilune.models.quantised import Form, Part, Shape
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, MlaSpec, ModelSpec, MoeSpec, TensorSpec

STRETCH = 32  # strips of weights and groups of packed ones are multiples of it
_VALUES_PER_ITEM = {"int4": 8, "mxfp4": 2}  # what one item of `packed` holds
_SCALED_TOGETHER = {"mxfp4": 32, "fp8_block": 128}


@dataclass(frozen=True)
class Share:
    """Rank `rank` of `tp`. `ep`: each rank holds whole experts instead of a stretch of every one."""

    tp: int = 1
    rank: int = 0
    ep: bool = False

    def of(self, size: int) -> range:
        """This rank's part of a width or a vocabulary. Raises ConfigError if there is not something for each rank."""
        if size < self.tp:
            raise ConfigError(
                f"{self.tp} ranks cannot share {size} rows.", "Each rank holds at least one.", "Choose a smaller tp."
            )
        even = size % self.tp == 0
        if (even and size // self.tp % STRETCH == 0) or size < STRETCH * self.tp:
            return _balanced(size, self.tp, self.rank)
        part = _balanced(size // STRETCH, self.tp, self.rank)
        return range(part.start * STRETCH, size if self.rank == self.tp - 1 else part.stop * STRETCH)

    def experts(self, count: int) -> range:
        """The experts of which this rank holds something. Raises ConfigError if `ep` leaves a rank without one."""
        if not self.ep:
            return range(count)
        if count < self.tp:
            raise ConfigError(
                f"{self.tp} ranks cannot share {count} experts.", "Each rank holds at least one.", "Leave out ep."
            )
        return _balanced(count, self.tp, self.rank)

    def holds(self, tensor: TensorSpec) -> bool:
        """Whether any of the tensor is on this rank: an expert may be another's."""
        return tensor.expert is None or tensor.expert[0] in self.experts(tensor.expert[1])

    def taken(self, tensor: TensorSpec) -> range | None:
        """The rows or columns (`tensor.split.axis`) this rank holds; None for all. Raises ConfigError as `of`."""
        split = tensor.split
        if split is None or self.tp == 1 or (self.ep and tensor.expert is not None):
            return None
        size = tensor.held_shape[0 if split.axis == "rows" else -1]
        return self.of(size) if split.heads is None else _balanced(size, self.tp, self.rank)


WHOLE = Share()


def narrow(spec: ModelSpec, share: Share) -> ModelSpec:
    """The model as this rank computes it: its heads and widths. The vocabulary and the router's experts stay whole.

    Raises ConfigError, naming the layer, if the ranks cannot share it.
    """
    if share.tp == 1:
        return spec
    return replace(spec, layers=tuple(_narrow(i, layer, share) for i, layer in enumerate(spec.layers)))


def _narrow(index: int, layer: LayerSpec, share: Share) -> LayerSpec:
    kind = "KDA" if isinstance(layer.mixer, KdaSpec) else "attention"
    if layer.mixer.heads % share.tp:
        raise ConfigError(
            f"{share.tp} ranks cannot share the {layer.mixer.heads} {kind} heads of layer {index}.",
            "Each rank computes whole heads, the same number on each.",
            f"Choose a tp that divides {layer.mixer.heads}.",
        )
    mixer: KdaSpec | MlaSpec = replace(layer.mixer, heads=layer.mixer.heads // share.tp)
    if isinstance(layer.ffn, DenseSpec):
        return LayerSpec(mixer, DenseSpec(len(share.of(layer.ffn.width))))
    return LayerSpec(mixer, _narrow_experts(layer.ffn, share))


def _narrow_experts(ffn: MoeSpec, share: Share) -> MoeSpec:
    share.experts(ffn.experts)  # refuses an `ep` that leaves a rank without an expert
    return replace(
        ffn,
        width=ffn.width if share.ep else len(share.of(ffn.width)),
        shared_width=len(share.of(ffn.shared_width)) if ffn.shared_width else 0,
    )


def cut(form: Form, share: Share) -> Form:
    """What `share` holds of a tensor found as `form`.

    Raises ConfigError, naming the tensor, where a cut would tear what the format stores or scales together.
    """
    taken = share.taken(form.spec)
    if taken is None:
        return form
    rows_first = form.spec.split is not None and form.spec.split.axis == "rows"
    parts = {key: _cut_part(form, key, part, taken, 0 if rows_first else 1) for key, part in form.parts.items()}
    return replace(form, parts=parts, local=_with(form.shape, 0 if rows_first else -1, len(taken)))


def _cut_part(form: Form, key: str, part: Part, taken: range, axis: int) -> Part:
    """`part` cut along `axis` where the weight's own values are cut to `taken`."""
    unit = _unit(form, key, axis)
    if form.format == "int8" and key == "scale":  # made while it is loaded, from what was taken
        return replace(part, shape=_with(part.shape, axis, -(-len(taken) // unit)))
    first, last, size = taken.start // unit, -(-taken.stop // unit), form.shape[axis]
    aligned = taken.start % unit == 0 and (taken.stop % unit == 0 or taken.stop == size)
    inside_one = last - first == 1 and key != "packed"  # ranks that share one scale each have a copy of it
    if not aligned and not inside_one:
        what = "rows" if axis == 0 else "inputs"
        raise ConfigError(
            f"{form.spec.stored} cannot be cut at {what} {taken.start} and {taken.stop} of {size}.",
            f"As {form.format} it keeps {unit} {what} together.",
            "Choose a smaller tp" + (", or ep, which keeps experts whole." if form.spec.expert else "."),
        )
    return replace(part, shape=_with(part.shape, axis, last - first), taken=(axis, first, last))


def _unit(form: Form, key: str, axis: int) -> int:
    """How many rows (axis 0) or inputs (axis 1) of the weight one item of part `key` stands for."""
    if key == "packed":
        return 1 if axis == 0 else _VALUES_PER_ITEM[form.format]
    if key == "data":
        return 1
    if axis == 0:
        return 128 if form.format == "fp8_block" else 1
    return form.group or _SCALED_TOGETHER[form.format]


def _balanced(size: int, ranks: int, rank: int) -> range:
    return range(size * rank // ranks, size * (rank + 1) // ranks)


def _with(shape: Shape, axis: int, size: int) -> Shape:
    sizes = list(shape)
    sizes[axis] = size
    return tuple(sizes)
