"""Each C++ kernel against its own floor, and the machine's limits measured in the same run.

    python benchmarks/kernels.py [--threads N] [--seconds S] [--json FILE]

Shapes are Kimi-Linear-48B's. A floor is what must move or be computed at least: bytes of weights or state over the
read bandwidth, or operations over the rate of torch's own product in floats (bf16 where the processor is faster in it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import Machine, measure_machine, times

from perilune.ops.kda import cpu as kda_cpu
from perilune.ops.kda import reference as kda
from perilune.ops.linear import cpu as linear_cpu
from perilune.ops.linear.formats import DenseWeight, Fp8BlockWeight, Int4Weight, Mxfp4Weight, Weight
from perilune.ops.mla import cpu as mla_cpu
from perilune.ops.moe import cpu as moe_cpu
from perilune.ops.native import Native

HIDDEN, HEADS, DIM, EXPERTS, TOP_K, WIDTH = 2304, 32, 128, 64, 8, 1024
SHAPE = {"nope": 128, "v_dim": 128, "rank": 512, "scale": 192**-0.5}


@dataclass(frozen=True)
class Row:
    """`seconds` per call (median); `limit` is the share of the floor's rate that was reached, 1 being the floor."""

    name: str
    seconds: float
    gigabytes_per_s: float
    gigaflops: float
    limit: float


def weight(name: str, *shape: int) -> Weight:
    """Random bits of a format; their values do not matter to the clock."""
    *lead, k = shape
    if name == "bf16":
        return DenseWeight(torch.randn(*shape).bfloat16())
    if name == "fp8":
        blocks = torch.ones(*lead[:-1], -(-lead[-1] // 128), -(-k // 128))
        return Fp8BlockWeight(torch.randn(*shape).to(torch.float8_e4m3fn), blocks)
    if name == "mxfp4":
        codes = torch.randint(0, 256, (*lead, k // 2), dtype=torch.uint8)
        return Mxfp4Weight(codes, torch.full((*lead, k // 32), 127, dtype=torch.uint8))
    words = torch.randint(-(2**31), 2**31 - 1, (*lead, k // 8), dtype=torch.int32)
    return Int4Weight(words, torch.full((*lead, k // 32), 0.01).bfloat16(), None, 32)


def projections(tokens: int) -> kda.Projections:
    """Random inputs of a KDA layer."""
    return kda.Projections(
        torch.randn(tokens, 3 * HEADS * DIM).bfloat16(),
        torch.randn(tokens, HEADS, DIM).bfloat16(),
        torch.randn(tokens, HEADS).bfloat16(),
        torch.randn(tokens, HEADS, DIM).bfloat16(),
    )


class Bench:
    def __init__(self, native: Native, machine: Machine, seconds: float) -> None:
        self.native, self.machine, self.seconds = native, machine, seconds

    def row(self, name: str, call: Callable[[], object], nbytes: float, operations: float) -> Row:
        took = statistics.median(times(call, self.seconds))
        floor = max(nbytes / self.machine.read / 1e9, operations / self.machine.product / 1e9)
        return Row(name, took, nbytes / took / 1e9, operations / took / 1e9, floor / took)

    def rows(self) -> Iterator[Row]:
        for name in ("bf16", "int4", "mxfp4", "fp8"):
            yield from self.linear(name)
        for name in ("bf16", "int4"):
            yield from self.experts(name)
        yield from self.kda_decode()
        yield from self.mla()

    def linear(self, name: str) -> Iterator[Row]:
        w = weight(name, 8192, HIDDEN)
        for tokens in (1, 4, 256):
            x = torch.randn(tokens, HIDDEN).bfloat16()
            call = lambda x=x: linear_cpu.linear(self.native, x, w)  # noqa: E731  # bound here, called in this turn
            yield self.row(f"linear {name} rows={tokens}", call, w.nbytes, 2.0 * tokens * 8192 * HIDDEN)

    def experts(self, name: str) -> Iterator[Row]:
        gate, up = (weight(name, EXPERTS, WIDTH, HIDDEN) for _ in range(2))
        down = weight(name, EXPERTS, HIDDEN, WIDTH)
        each = (gate.nbytes + up.nbytes + down.nbytes) / EXPERTS
        for tokens in (1, 8, 256):
            x = torch.randn(tokens, HIDDEN).bfloat16()
            ids = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(tokens)])
            weights = torch.rand(tokens, TOP_K)
            call = lambda x=x, i=ids, w=weights: moe_cpu.experts(self.native, x, i, w, gate, up, down)  # noqa: E731
            operations = 6.0 * tokens * TOP_K * HIDDEN * WIDTH
            yield self.row(f"experts {name} tokens={tokens}", call, each * len(ids.unique()), operations)

    def kda_decode(self) -> Iterator[Row]:
        w = kda.Parameters(
            torch.randn(3 * HEADS * DIM, 4).bfloat16(),
            torch.zeros(HEADS),
            torch.zeros(HEADS, DIM),
            torch.ones(DIM).bfloat16(),
            1e-5,
        )
        for n in (1, 16):
            x, state, conv = (
                projections(n),
                torch.zeros(n, HEADS, DIM, DIM),
                torch.zeros(n, 3, HEADS, DIM, 3).bfloat16(),
            )
            rows = torch.arange(n)
            call = lambda x=x, r=rows, s=state, c=conv: kda_cpu.decode(self.native, x, r, r, w, s, c)  # noqa: E731
            # read and written; the floor counts a write like a read
            yield self.row(f"kda decode sequences={n}", call, 2.0 * state.nbytes, 7.0 * state.numel())
        tokens, long = 256, projections(256)
        whole = lambda: kda_cpu.prefill(self.native, long, slice(0, tokens), 0, w, state, conv)  # noqa: E731
        # per token and head: (K exp G) S, (Q exp G) S and K^T R are K x V; A, M, A R and M R half a chunk wide
        operations = tokens * HEADS * (3 * 2.0 * DIM * DIM + 4 * 2.0 * 32 * DIM)
        yield self.row(f"kda prefill tokens={tokens}", whole, tokens * HEADS * DIM * 12.0, operations)

    def mla(self) -> Iterator[Row]:
        kv_b = weight("bf16", HEADS * 256, 512)
        for context in (4096, 32768):
            pages = torch.randn(context // 64, 64, 576).bfloat16()
            table = torch.arange(context // 64)
            q = torch.randn(256, HEADS, 192).bfloat16()
            step = lambda q=q[:1], p=pages, t=table, c=context: mla_cpu.decode_rows(  # noqa: E731
                self.native, q, p, [t], [c], kv_b, **SHAPE
            )
            operations = 2.0 * HEADS * context * (576 + 512)
            yield self.row(f"mla decode context={context}", step, pages.nbytes + kv_b.nbytes, operations)
        start = 4096 - 256
        piece = lambda: mla_cpu.prefill(self.native, q, pages, table, start, kv_b, **SHAPE)  # noqa: E731
        operations = 2.0 * 4096 * HEADS * 256 * 512 + 2.0 * 256 * (start + 128) * HEADS * (192 + 128)
        yield self.row("mla prefill 256 tokens after 3840", piece, 4096 * 576 * 2.0, operations)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=0.5, help="time per measurement")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    native = Native.load()
    if isinstance(native, str):
        print(f"There are no kernels to measure: {native}.", file=sys.stderr)
        return 1
    machine = measure_machine(arguments.seconds)
    print(f"{machine.line}\n")
    print(f"{'kernel':36} {'ms':>9} {'GB/s':>7} {'GFLOP/s':>8} {'of limit':>8}")
    rows = []
    for row in Bench(native, machine, arguments.seconds).rows():
        rows.append(row)
        print(
            f"{row.name:36} {row.seconds * 1e3:9.3f} {row.gigabytes_per_s:7.1f} {row.gigaflops:8.1f} {row.limit:8.0%}"
        )
    if arguments.json:
        report = {"machine": asdict(machine), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
