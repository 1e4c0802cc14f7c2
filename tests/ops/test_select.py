"""Which backend serves which op, and what is said about it."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

from perilune.ops import selfcheck
from perilune.ops.linear.formats import DenseWeight
from perilune.ops.native import Native
from perilune.ops.select import OPS, Needs, choose
from perilune.ops.table import REFERENCE

needs_kernels = pytest.mark.skipif(isinstance(Native.load(), str), reason="no C++ kernels here")


def test_every_op_has_a_backend_and_every_faster_one_a_reason() -> None:
    selection = choose(Needs())
    assert [choice.op for choice in selection.choices] == list(OPS)
    for choice in selection.choices:
        assert all(reason for _, reason in choice.refused)
        if choice.backend == "reference":
            assert getattr(selection.ops, choice.op) is getattr(REFERENCE, choice.op)


def test_float32_and_whoever_asks_get_the_reference_for_everything() -> None:
    for selection in (choose(Needs(torch.float32)), choose(Needs(), "reference")):
        assert selection.ops == REFERENCE
        assert selection.because.startswith("kernels reference: ")


def test_without_the_extension_everything_runs_on_the_reference_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "perilune._kernels", None)
    with caplog.at_level(logging.WARNING):
        selection = choose(Needs())
    assert selection.ops == REFERENCE
    assert [record.message for record in caplog.records] == [
        "Every op runs on its slow reference: no C++ kernels in this build."
    ]
    assert "no C++ kernels in this build" in selection.because


@needs_kernels
def test_a_weight_the_kernels_cannot_read_keeps_its_ops_on_the_reference() -> None:
    selection = choose(Needs(weights=(DenseWeight(torch.ones(8, 32)),)))
    assert selection.ops.linear is REFERENCE.linear
    assert selection.ops.rms_norm is not REFERENCE.rms_norm
    refused = {choice.op: dict(choice.refused) for choice in selection.choices}
    assert "float32" in refused["linear"]["cpu"]


@needs_kernels
def test_kernels_that_disagree_with_the_reference_on_this_processor_are_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selfcheck.norm_cpu, "rms_norm", lambda native, x, weight, eps: x * 1.1)
    with caplog.at_level(logging.WARNING):
        selection = choose(Needs())
    assert selection.ops == REFERENCE
    assert "RMSNorm differs from the reference by" in selection.because
    native = Native.load()
    assert isinstance(native, Native)
    tried = [record.message for record in caplog.records if "are not used" in record.message]
    assert len(tried) == len(native.module.names())


@needs_kernels
def test_every_variant_of_this_processor_agrees_with_the_reference() -> None:
    native = Native.load()
    assert isinstance(native, Native)
    for name in native.module.names():
        variant = Native.load(name)
        assert isinstance(variant, Native)
        assert selfcheck.disagreement(variant) is None


@needs_kernels
def test_a_head_size_the_kernels_cannot_serve_is_named() -> None:
    refused = {choice.op: dict(choice.refused) for choice in choose(Needs(kda_dim=24)).choices}
    assert "head dim of 24" in refused["kda_decode"]["cpu"]
    assert "cpu" not in refused["linear"]
