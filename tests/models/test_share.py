"""What ranks hold of a model: together all of it, each value where it belongs, nothing torn that belongs together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_files import KIMI_LINEAR, copy_golden, edit_tensors, quantise_fp8, quantise_int4
from torch import Tensor

from perilune.errors import ConfigError
from perilune.models.checkpoint import Checkpoint
from perilune.models.families import read_spec
from perilune.models.loader import load_weights
from perilune.models.share import STRETCH, Share, narrow
from perilune.models.spec import KdaSpec, TensorSpec
from perilune.ops.linear.formats import pack_int4


@given(st.integers(1, 16), st.integers(1, 5000))
def test_stretches_cover_a_width_once_and_in_order(tp: int, size: int) -> None:
    if size < tp:
        with pytest.raises(ConfigError, match="cannot share"):
            Share(tp).of(size)
        return
    parts = [Share(tp, rank).of(size) for rank in range(tp)]
    assert [n for part in parts for n in part] == list(range(size))
    lengths = [len(part) for part in parts]
    assert min(lengths) > 0
    assert max(lengths) - min(lengths) < 2 * STRETCH


@given(st.integers(2, 16), st.integers(1, 40), st.integers(0, 31))
def test_cuts_lie_where_strips_and_groups_end_if_every_rank_gets_one(tp: int, stretches: int, rest: int) -> None:
    parts = [Share(tp, rank).of(max(tp, stretches * STRETCH + rest)) for rank in range(tp)]
    if stretches >= tp:
        assert all(part.start % STRETCH == 0 for part in parts)


def test_a_published_model_is_shared_evenly() -> None:
    spec = read_spec(KIMI_LINEAR)
    for tp in (2, 4, 8):
        for rank in range(tp):
            share = Share(tp, rank)
            mixer = narrow(spec, share).layers[0].mixer
            assert isinstance(mixer, KdaSpec)
            assert mixer.heads == 32 // tp
            assert len(share.of(spec.vocab)) == spec.vocab // tp
            assert len(Share(tp, rank, ep=True).experts(256)) == 256 // tp


def values(checkpoint: Checkpoint, share: Share, bits: int) -> dict[str, Tensor]:
    """What a rank loaded, unpacked."""
    loaded = load_weights(checkpoint, torch.float32, weight_bits=bits, share=share)
    return {k: v if isinstance(v, Tensor) else v.dequantise(torch.float32) for k, v in loaded.items()}


def along(checkpoint: Checkpoint, name: str) -> tuple[TensorSpec, int | None]:
    """The (first expert's) tensor, and the dim of what is held along which ranks share it by width."""
    stacked = ".experts." in name
    wanted = name.replace(".experts.", ".experts.0.") if stacked else name
    tensor = next(tensor for tensor in checkpoint.tensors if tensor.name == wanted)
    if tensor.split is None:
        return tensor, None
    return tensor, (0 if tensor.split.axis == "rows" else 1) + stacked


@pytest.mark.parametrize("ep", [False, True])
@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("bits", [16, 8])
def test_what_ranks_load_is_together_what_one_loads(golden: Path, tp: int, ep: bool, bits: int) -> None:
    checkpoint = Checkpoint.open(golden)
    if golden.name == "glm4_moe_lite":
        tp = 5
    whole = values(checkpoint, Share(), bits)
    parts = [values(checkpoint, Share(tp, rank, ep), bits) for rank in range(tp)]
    for name, expected in whole.items():
        _, dim = along(checkpoint, name)
        if ".experts." in name and ep:
            dim = 0
        if dim is None:
            assert all(torch.equal(part[name], expected) for part in parts), name
            continue
        found = torch.cat([part[name] for part in parts], dim)
        if bits == 8:  # groups of 32 inputs are counted from where a rank's begin
            assert torch.allclose(found, expected, atol=float(expected.abs().max()) / 100), name
        else:
            assert torch.equal(found, expected), name
        assert max(part[name].numel() for part in parts) < expected.numel(), name


def packed(root: Path, folder: Path, pack: Callable[[dict[str, Tensor], str], None], part: str) -> Checkpoint:
    """A golden checkpoint in which `pack` replaced every matrix with `part` in its name."""
    copied = copy_golden(root, "kimi_linear", folder)

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if part in name and name.endswith("proj.weight")]:
            pack(tensors, name.removesuffix(".weight"))

    edit_tensors(copied, change)
    return Checkpoint.open(copied)


def to_int4(tensors: dict[str, Tensor], module: str, group: int = 32) -> None:
    q, scale, zero = quantise_int4(tensors.pop(f"{module}.weight"), group, symmetric=False)
    assert zero is not None
    tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_scale"] = pack_int4(q), scale
    tensors[f"{module}.weight_zero_point"] = pack_int4(zero.T.contiguous()).T.contiguous()


def to_fp8(tensors: dict[str, Tensor], module: str) -> None:
    tensors[f"{module}.weight"], tensors[f"{module}.weight_scale_inv"] = quantise_fp8(tensors[f"{module}.weight"])


@pytest.mark.parametrize("tp", [2, 4])  # of four heads of 16: a group of 32 inputs is cut in two
@pytest.mark.parametrize("pack", [to_int4, to_fp8])
def test_packed_heads_are_cut_with_their_scales_and_zeros(
    golden_root: Path, tmp_path: Path, pack: Callable[[dict[str, Tensor], str], None], tp: int
) -> None:
    checkpoint = packed(golden_root, tmp_path, pack, "self_attn")
    whole, parts = values(checkpoint, Share(), 16), [values(checkpoint, Share(tp, rank), 16) for rank in range(tp)]
    for name in ("layers.0.kda.q", "layers.0.kda.o", "layers.3.mla.kv_b", "layers.3.mla.o"):
        _, dim = along(checkpoint, name)
        assert dim is not None
        assert torch.equal(torch.cat([part[name] for part in parts], dim), whole[name]), name


def test_a_cut_through_a_group_that_nobody_could_read_is_refused_by_name(golden_root: Path, tmp_path: Path) -> None:
    checkpoint = packed(golden_root, tmp_path, partial(to_int4, group=128), "layers.0.mlp.down")
    with pytest.raises(ConfigError, match=r"0\.mlp\.down_proj\.weight cannot be cut at inputs 64 and 160 of 160"):
        load_weights(checkpoint, torch.float32, share=Share(2, 1))


def test_a_rank_reads_the_experts_it_holds_and_no_others(golden_root: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = Checkpoint.open(golden_root / "kimi_linear")
    load_weights(checkpoint, torch.bfloat16, lambda done, total: seen.append((done, total)), share=Share(4, 1, ep=True))
    others = [tensor for tensor in checkpoint.tensors if tensor.expert and tensor.expert[0] not in range(3, 6)]
    stored = {name for tensor in checkpoint.tensors for name in checkpoint.form_of(tensor).owned}
    skipped = {name for tensor in others for name in checkpoint.form_of(tensor).owned}
    assert seen[-1][0] == sum(checkpoint.stored[name].nbytes for name in stored - skipped)


def test_more_ranks_than_experts_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"16 ranks cannot share 12 experts.*Leave out ep"):
        Share(16, 0, ep=True).experts(12)
