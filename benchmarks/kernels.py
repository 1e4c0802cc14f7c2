"""Each C++ kernel against its own floor, and the machine's limits measured in the same run.

    python benchmarks/kernels.py [--threads N] [--seconds S] [--json FILE]

Shapes are Kimi-Linear-48B's, and GLM-4.7-Flash's experts. A floor is what must move or be computed at least: bytes of
weights or state over the read bandwidth, or operations over the rate of torch's fp32 product (bf16 where the processor
has instructions for it); such a processor multiplies bytes, as weights of 4 and 8 bits ask for, at twice that. Weights
lie in strips and are taken in turn from more memory than the caches hold, as in a model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import torch
from machine import Machine, measure_machine, times

from perilune.ops.kda import cpu as kda_cpu
from perilune.ops.kda import reference as kda
from perilune.ops.linear import cpu as linear_cpu
from perilune.ops.linear.formats import DenseWeight, Fp8BlockWeight, Int4Weight, Mxfp4Weight, Weight, quantise_int8
from perilune.ops.mla import cpu as mla_cpu
from perilune.ops.moe import cpu as moe_cpu
from perilune.ops.moe import cpu_router
from perilune.ops.native import Native

HIDDEN, HEADS, DIM = 2304, 32, 128
# experts, top-k, hidden, width
KIMI_EXPERTS, GLM_EXPERTS = (256, 8, 2304, 1024), (64, 4, 2048, 1536)
BEYOND_CACHES = 256 << 20
BYTEWISE = ("int8", "int4", "mxfp4")
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
    if name == "int8":
        return quantise_int8(torch.randn(*shape), 32)
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

    def row(
        self,
        name: str,
        call: Callable[[], object],
        nbytes: float,
        operations: float,
        *,
        bytewise: bool = False,
        updates: bool = False,
    ) -> Row:
        """`bytewise`: products of int8. `updates`: half of the bytes are written."""
        took = statistics.median(times(call, self.seconds))
        product = self.machine.int8 if bytewise else self.machine.product
        memory = self.machine.update if updates else self.machine.read
        floor = max(nbytes / memory / 1e9, operations / product / 1e9)
        return Row(name, took, nbytes / took / 1e9, operations / took / 1e9, floor / took)

    def rows(self) -> Iterator[Row]:
        for name in ("bf16", "int8", "int4", "mxfp4", "fp8"):
            yield from self.linear(name)
        yield from self.experts("int4", "kimi", *KIMI_EXPERTS)
        yield from self.experts("int4", "glm", *GLM_EXPERTS)
        yield from self.experts("bf16", "glm", *GLM_EXPERTS)
        yield from self.kda_decode()
        yield from self.router()
        yield from self.mla()

    def linear(self, name: str) -> Iterator[Row]:
        count = BEYOND_CACHES // weight(name, 4096, HIDDEN).nbytes + 1
        turns = cycle([linear_cpu.prepare(self.native, weight(name, 4096, HIDDEN)) for _ in range(count)])
        nbytes = next(turns).nbytes
        for tokens in (1, 4, 8, 16, 512, 2048):
            x = torch.randn(tokens, HIDDEN).bfloat16()
            call = lambda x=x: linear_cpu.linear(self.native, x, next(turns))  # noqa: E731  # bound here, called in this turn
            operations = 2.0 * tokens * 4096 * HIDDEN
            yield self.row(f"linear {name} rows={tokens}", call, nbytes, operations, bytewise=name in BYTEWISE)

    def experts(self, name: str, model: str, count: int, top_k: int, hidden: int, width: int) -> Iterator[Row]:
        shapes = ((count, width, hidden), (count, width, hidden), (count, hidden, width))
        parts = [linear_cpu.prepare(self.native, weight(name, *shape)) for shape in shapes]
        each = sum(part.nbytes for part in parts) / count
        for tokens in (1, 8, 16, 512, 2048):
            x, weights = torch.randn(tokens, hidden).bfloat16(), torch.rand(tokens, top_k)
            drawn = [torch.rand(tokens, count).topk(top_k).indices for _ in range(16)]
            used = sum(len(ids.unique()) for ids in drawn) / len(drawn)
            turns = cycle(drawn)
            call = lambda x=x, t=turns, w=weights: moe_cpu.experts(self.native, x, next(t), w, *parts)  # noqa: E731
            operations = 6.0 * tokens * top_k * hidden * width
            yield self.row(
                f"experts {model} {name} tokens={tokens}", call, each * used, operations, bytewise=name in BYTEWISE
            )

    def kda_decode(self) -> Iterator[Row]:
        w = kda.Parameters(
            torch.randn(3 * HEADS * DIM, 4).bfloat16(),
            torch.zeros(HEADS),
            torch.zeros(HEADS, DIM),
            torch.ones(DIM).bfloat16(),
            1e-5,
        )
        for n in (1, 16):
            # four layers' states one after the other, as a model runs: more than the last-level cache keeps at 16
            x, states = projections(n), [torch.zeros(n, HEADS, DIM, DIM) for _ in range(4)]
            rows, conv = torch.arange(n), torch.zeros(n, 3, HEADS, DIM, 3).bfloat16()
            call = lambda x=x, r=rows, all=states, c=conv: [  # noqa: E731
                kda_cpu.decode(self.native, x, r, r, w, s, c) for s in all
            ]
            size = sum(state.nbytes for state in states)
            yield self.row(f"kda decode sequences={n} layers=4", call, 2.0 * size, 7.0 * size / 4, updates=True)
        tokens, long, state = 512, projections(512), torch.zeros(1, HEADS, DIM, DIM)
        whole = lambda: kda_cpu.prefill(self.native, long, slice(0, tokens), 0, w, state, conv[:1])  # noqa: E731
        # per token and head: (K exp G) S, (Q exp G) S and K^T R are K x V; A, M, A R and M R half a chunk wide
        operations = tokens * HEADS * (3 * 2.0 * DIM * DIM + 4 * 2.0 * 32 * DIM)
        yield self.row(f"kda prefill tokens={tokens}", whole, tokens * HEADS * DIM * 12.0, operations)

    def router(self) -> Iterator[Row]:
        router, bias = weight("bf16", 256, HIDDEN), torch.rand(256)
        assert isinstance(router, DenseWeight)
        for tokens in (1, 512):
            x = torch.randn(tokens, HIDDEN).bfloat16()
            call = lambda x=x: cpu_router.route(self.native, x, router.data, bias, top_k=KIMI_EXPERTS[1])  # noqa: E731
            yield self.row(f"router tokens={tokens}", call, router.nbytes, 2.0 * tokens * 256 * HIDDEN)

    def mla(self) -> Iterator[Row]:
        kv_b = weight("bf16", HEADS * 256, 512)
        for context in (4096, 32768):
            pages = torch.randn(context // 64, 64, 576).bfloat16()
            table = torch.arange(context // 64)
            q = torch.randn(512, HEADS, 192).bfloat16()
            step = lambda q=q[:1], p=pages, t=table, c=context: mla_cpu.decode_rows(  # noqa: E731
                self.native, q, p, [t], torch.tensor([c]), kv_b, **SHAPE
            )
            operations = 2.0 * HEADS * context * (576 + 512)
            yield self.row(f"mla decode context={context}", step, pages.nbytes + kv_b.nbytes, operations)
            start = context - 512
            piece = lambda q=q, p=pages, t=table, s=start: mla_cpu.prefill(  # noqa: E731
                self.native, q, p, t, s, kv_b, **SHAPE
            )
            operations = 2.0 * context * HEADS * 256 * 512 + 2.0 * 512 * (start + 256) * HEADS * (192 + 128)
            yield self.row(f"mla prefill 512 tokens after {start}", piece, context * 576 * 2.0, operations)


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
