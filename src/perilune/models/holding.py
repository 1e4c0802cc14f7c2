"""What the loader holds: one entry per name that `nn` asks for, a layer's experts stacked. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from perilune.errors import UnsupportedError
from perilune.models.quantised import Form, Part
from perilune.models.spec import ModelSpec, WeightFormat

EMBEDDING = "embed"
_EXPERT = re.compile(r"(layers\.\d+\.moe\.experts)\.(\d+)\.(gate|up|down)")


@dataclass(frozen=True)
class Held:
    """A tensor or weight in memory, under perilune's own name.

    `forms` holds one entry, or one per expert in the order of their index. `stacked` says whether there is a leading
    dimension of experts.
    """

    name: str
    forms: tuple[Form, ...]
    stacked: bool

    @property
    def format(self) -> WeightFormat:
        return self.forms[0].format

    @property
    def is_linear(self) -> bool:
        """Whether `nn` receives a Weight, not a bare tensor."""
        return self.forms[0].spec.quantisable

    @property
    def parts(self) -> dict[str, Part]:
        """The tensors to allocate, by field name, with the leading dimension of a stack."""
        lead = (len(self.forms),) if self.stacked else ()
        return {key: Part(p.stored, p.dtype, (*lead, *p.shape)) for key, p in self.forms[0].parts.items()}

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


def leaves_embedding(spec: ModelSpec, *, hold: bool) -> bool:
    """Whether rows of the embedding stay in their file, to be read as tokens need them.

    So it is unless the table is the head too, which every step reads whole, or it is to be held, as on a GPU.
    """
    return not (spec.tied_embedding or hold)


def hold(forms: Iterable[Form]) -> list[Held]:
    """Group `forms` into what is held. Raises UnsupportedError when a layer's experts are stored in several formats."""
    held: list[Held] = []
    stacks: dict[str, dict[int, Form]] = {}
    for form in forms:
        if match := _EXPERT.fullmatch(form.spec.name):
            stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = form
        else:
            held.append(Held(form.spec.name, (form,), stacked=False))
    for name, experts in stacks.items():
        _check_same(experts)
        held.append(Held(name, tuple(experts[e] for e in sorted(experts)), stacked=True))
    return held


def _check_same(experts: Mapping[int, Form]) -> None:
    first = next(iter(experts.values()))
    for form in experts.values():
        if not _alike(form, first):
            raise UnsupportedError(
                f"{form.spec.stored} and {first.spec.stored} are stored in different formats.",
                f"One is {_describe(form)}, the other {_describe(first)}; the experts of a layer must be alike.",
                "Choose a checkpoint that quantises all experts of a layer the same way.",
            )


def _alike(a: Form, b: Form) -> bool:
    """Whether two experts can lie in one stack. Cheap: it runs for each of up to 70,000 matrices."""
    if a.format != b.format or a.group != b.group or a.parts.keys() != b.parts.keys():
        return False
    return all(part.dtype == b.parts[key].dtype and part.shape == b.parts[key].shape for key, part in a.parts.items())


def _describe(form: Form) -> str:
    return f"{form.format} in groups of {form.group}" if form.group else form.format
