"""Limits: bytes over bandwidth, operations over the fastest product."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from machine import Machine, physical_cores, processor_name, times
from peers.floors import Floors
from peers.workloads import Workload

from perilune.models.checkpoint import Checkpoint

HERE = Machine("x", "avx2", 1, read=10.0, update=8.0, float32=50.0, bfloat16=100.0, int8=200.0)


@pytest.fixture(scope="module")
def floors(tiny_slice: Path) -> Floors:
    return Floors.of(Checkpoint.open(tiny_slice), HERE, chunk=512)


def on(floors: Floors, **rates: float) -> Floors:
    return dataclasses.replace(floors, machine=dataclasses.replace(HERE, **rates))


def test_weights_are_counted_once_and_exactly(floors: Floors, tiny_slice: Path) -> None:
    weights = Checkpoint.open(tiny_slice).weight_bytes("bfloat16", leave_embedding=True)
    assert floors.always + floors.experts == weights
    assert floors.memory(64) == weights + floors.geometry.sequence_bytes(64)


def test_decoding_is_bound_by_reading_and_prefill_by_the_product(floors: Floors) -> None:
    decode, prefill = Workload("decode", 16), Workload("prefill", 512)
    slow = on(floors, read=0.01)
    assert on(floors, read=0.02).limit(decode) == pytest.approx(2 * slow.limit(decode))
    weak = on(floors, read=1e6)
    assert on(floors, read=1e6, int8=400.0).limit(prefill) == pytest.approx(2 * weak.limit(prefill))


def test_more_sequences_share_the_weights_and_depth_costs(floors: Floors) -> None:
    slow = on(floors, read=0.001)
    one, sixteen = (slow.limit(Workload("decode", 16, 0, n)) for n in (1, 16))
    assert one < sixteen < 16 * one
    assert slow.limit(Workload("decode", 16, 4096)) < one
    assert floors.limit(Workload("prefill", 512, 4096)) < floors.limit(Workload("prefill", 512))


def test_one_token_reads_its_experts_and_many_read_them_all(floors: Floors) -> None:
    assert floors.weights(1) == floors.always + floors.experts * 2 / 4
    assert floors.weights(512) == pytest.approx(floors.always + floors.experts)


def test_second_threads_of_a_core_are_not_counted(tmp_path: Path) -> None:
    lines = [f"model name\t: Some CPU\nphysical id\t: {p}\ncore id\t\t: 0\n" for p in (0, 0)]
    (tmp_path / "cpuinfo").write_text("\n".join(lines))
    assert physical_cores(tmp_path) == 1
    assert processor_name(tmp_path) == "Some CPU"


def test_where_nothing_is_listed_torch_decides(tmp_path: Path) -> None:
    assert physical_cores(tmp_path) >= 1
    assert processor_name(tmp_path)


def test_a_call_is_timed_three_times_at_least_and_after_a_warm_up() -> None:
    calls: list[int] = []
    assert len(times(lambda: calls.append(1), 0.0)) == 3
    assert len(calls) == 4
