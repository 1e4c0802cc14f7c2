"""The kernels and a whole model on this machine's GPU, beside what it allows and beside fla-core. One command.

    python benchmarks/gpu.py --json result.json          # everything: about half an hour the first time
    python benchmarks/gpu.py --only kernels --rows "kda*"
    python benchmarks/gpu.py --only whole --layers 8     # a smaller card
    TRITON_INTERPRET=1 python benchmarks/gpu.py --dry    # no GPU: the same programme at tiny sizes, times mean nothing

Kernels have Kimi-Linear-48B's shapes; the whole model is its first `--layers` layers in int4 with random weights that
are made on the device. fla-core is measured if it is installed (`pip install fla-core==0.6.0`). How to read the table:
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

import torch
import triton
from gpus import rows, sizes, whole
from gpus.clock import Clock
from gpus.fla import Fla
from gpus.kernels import Kernels
from gpus.limits import Limits, measure_limits
from gpus.rows import Row
from peers.slices import MODELS

from perilune.errors import PeriluneError
from perilune.ops.gpu.launch import Gpu
from perilune.ops.gpu.table import open_gpu

LEAST = MODELS["kimi"].least


def main() -> int:
    arguments = parse()
    device = torch.device("cpu" if arguments.dry else "cuda")
    gpu = open_gpu(device)
    if isinstance(gpu, str):
        print(f"There is no GPU to measure: {gpu}. With --dry the same runs interpreted.", file=sys.stderr)
        return 1
    clock = Clock.of(device, arguments.repeats)
    limits = measure_limits(clock, gpu.arch.name)
    fla = Fla.open()
    absent = fla if isinstance(fla, str) else None
    print(f"{limits.line}\n{absent or f'fla-core {fla.version}'}\n\n{rows.heading()}", flush=True)  # type: ignore[union-attr]
    found, left_out = [], []
    try:
        for row in measured(arguments, device, gpu, clock, limits, None if isinstance(fla, str) else fla):
            found.append(row)
            print(rows.text(row), flush=True)
    except (PeriluneError, torch.OutOfMemoryError) as error:
        left_out.append(str(error))
        print(f"The rest is left out: {error}\nA smaller card takes fewer --layers.", file=sys.stderr)
    after = measure_limits(clock, gpu.arch.name)
    print(f"\nafterwards: {after.line}")
    if arguments.json:
        about = {
            "device": asdict(limits),
            "device_after": asdict(after),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"torch": torch.__version__, "triton": triton.__version__},
            "fla_core": absent or fla.version,  # type: ignore[union-attr]
            "interpreted": arguments.dry,
            "left_out": left_out,
            "rows": [row.as_json() for row in found],
        }
        arguments.json.write_text(json.dumps(about, indent=1) + "\n")
    return 1 if left_out else 0


def measured(
    arguments: argparse.Namespace, device: torch.device, gpu: Gpu, clock: Clock, limits: Limits, fla: Fla | None
) -> Iterator[Row]:
    """Every wanted row, as it is done."""

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in arguments.rows or ("*",))

    if arguments.only != "whole":
        shapes = sizes.TINY if arguments.dry else sizes.REAL
        yield from Kernels(gpu, clock, limits, shapes, None if arguments.dry else fla, wanted).rows()
    if arguments.only != "kernels":
        plan = whole.TINY if arguments.dry else replace(whole.REAL, layers=arguments.layers)
        with tempfile.TemporaryDirectory() as folder:
            yield from whole.rows(Path(folder), plan.only(wanted), device, limits, min(arguments.repeats, 5))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dry", action="store_true", help="tiny sizes in Triton's interpreter: proves the programme, times nothing")
    add("--only", choices=("kernels", "whole"), default=None)
    add("--rows", action="append", metavar="PATTERN", help="only rows of this name, * for anything; may be repeated")
    add(
        "--layers", type=int, default=whole.REAL.layers, help="how many of the model's layers, at least 4 [%(default)s]"
    )
    add("--repeats", type=int, default=None, help="calls per row, of which the median counts [30; whole model: 5]")
    add("--json", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (1 if arguments.dry else 30)
    if arguments.layers < LEAST:
        parser.error(f"the first {arguments.layers} layers lack a kind of layer: take {LEAST}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
