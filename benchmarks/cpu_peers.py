"""perilune beside llama.cpp on this CPU: one slice of a real model, the same bits, threads and tokens, one sitting.

    python benchmarks/cpu_peers.py --model kimi --quick
    python benchmarks/cpu_peers.py --model glm --json result.json
    python benchmarks/cpu_peers.py --only perilune --rows "prefill 512" --profile

The first run makes the slice (3 GB, a minute) and compiles llama.cpp (a quarter of an hour on two cores); both are
kept. Engines take turns, each in a process of its own, and every number is a median. How to read the table:
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import measure_machine, physical_cores
from peers import engines, table
from peers.agreement import check_agreement
from peers.children import Child, MeasureError
from peers.environment import default_folder
from peers.floors import Floors
from peers.session import MEMORY_CONTEXT, WARM_UP, measure, measure_start, run
from peers.slices import MODELS, ensure_slice, slice_config
from peers.targets import LOAD_TIME, PEAK_MEMORY, TARGETS
from peers.workloads import Workload, longest, workloads

from perilune.host.memory import available_memory
from perilune.models.checkpoint import Checkpoint
from perilune.plan.parameters import count_parameters

SECONDS = 0.5  # per limit of the machine
TRANSFORMERS_PROMPT = 2048
TRANSFORMERS_SPARE = 4 << 30  # activations of such a prompt


class Sitting:
    """Everything one run of the script measures."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        model = MODELS[arguments.model]
        layers = arguments.layers or model.layers
        if layers < model.least:
            raise MeasureError(f"The first {layers} layers of {model.title} lack a kind of layer: take {model.least}.")
        self.folder = ensure_slice(arguments.slices / f"{arguments.model}{layers}", slice_config(model, layers))
        self.checkpoint = Checkpoint.open(self.folder)
        self.title = f"{model.title}, first {layers} layers, int4 in groups of 32, {arguments.threads} threads"
        self.rows = tuple(row for row in workloads(arguments.quick) if self._wanted(row.name))
        self.targets = TARGETS[arguments.model] if layers == model.layers else {}
        self.about: dict[str, Any] = {}

    def measure(self) -> Iterator[table.Row]:
        """Every wanted row, as it is done; `about` then says what it was measured with."""
        machine = measure_machine(SECONDS)
        self.machine = machine
        print(f"{self.title}\n{machine.line}\n", flush=True)
        floors = Floors.of(self.checkpoint, machine, self.arguments.chunk)
        setups = self._setups()
        a = self.arguments
        beside = {} if a.only or a.quick or a.no_transformers else {"transformers": self._transformers()}
        print(table.heading(), flush=True)
        if self.rows:
            yield from self._speed(setups, floors, beside)
        if self._wanted(LOAD_TIME) or self._wanted(PEAK_MEMORY):
            for row in self._start(setups, floors):
                if self._wanted(row.name):
                    yield row
        after = measure_machine(SECONDS)
        self.about["machine_after"] = asdict(after)
        print(f"\nafterwards: {after.line}")

    def _setups(self) -> list[engines.Setup]:
        a = self.arguments
        setups = []
        if a.only in (None, "perilune"):
            setups.append(engines.perilune(self.folder, a.threads, a.chunk, a.profile))
        if a.only in (None, "llama.cpp"):
            setups.append(engines.llama_cpp(self.folder, a.threads, a.chunk, a.flash, a.peer_env))
        return setups

    def _speed(
        self, setups: list[engines.Setup], floors: Floors, beside: dict[str, dict[str, list[float]]]
    ) -> Iterator[table.Row]:
        sizes = {"context": longest((*self.rows, *WARM_UP)), "sequences": max(row.sequences for row in self.rows)}
        with ExitStack() as stack:
            children: list[tuple[str, Child]] = []
            for setup in setups:
                children.append((setup.key, stack.enter_context(setup.load(**setup.fast, **sizes)[0])))
            if len(children) == 2:
                agreement = check_agreement(children[0][1], children[1][1], self.checkpoint.spec.vocab)
                self.about["agreement"] = asdict(agreement)
                print(agreement.line, file=sys.stderr)
            for row in measure(children, self.rows, self.arguments.repeats, floors, self.targets, beside):
                yield row
                for name, (seconds, calls) in children[0][1].ask("state").get("ops", {}).items():
                    print(f"    {name:14} {seconds * 1e3:9.1f} ms {calls:6} calls")
            self.about["engines"] = {key: child.ask("state")["about"] for key, child in children}

    def _start(self, setups: list[engines.Setup], floors: Floors) -> Iterator[table.Row]:
        sizes = {"context": MEMORY_CONTEXT, "sequences": 1}
        loaders = [(s.key, [partial(s.load, **way, **sizes) for way in s.light]) for s in setups]
        repeats = 1 if self.arguments.quick else min(3, self.arguments.repeats)
        yield from measure_start(loaders, repeats, floors, self.targets)

    def _transformers(self) -> dict[str, list[float]]:
        """Samples by row, from an empty cache and short prompts; without any, the reason is printed and kept."""
        needed = 2 * count_parameters(self.checkpoint.spec).total + TRANSFORMERS_SPARE
        setup = engines.transformers(self.folder, self.arguments.threads, needed, available_memory()[0])
        if isinstance(setup, str):
            print(f"without transformers: {setup}\n")
            self.about["transformers"] = setup
            return {}
        rows = [row for row in self.rows if not row.depth and row.tokens <= TRANSFORMERS_PROMPT]
        child, _ = setup.load()
        with child:
            run(child, Workload("prefill", 64), -1)
            return {row.name: [row.value(run(child, row, repeat)) for repeat in range(2)] for row in rows}

    def _wanted(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.arguments.rows or ("*",))


def main() -> int:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    rows = []
    try:
        sitting = Sitting(arguments)
        for row in sitting.measure():
            rows.append(row)
            print(table.text(row), flush=True)
    except MeasureError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        about = {"model": sitting.title, "date": datetime.now(UTC).isoformat(timespec="seconds"), **sitting.about}
        arguments.json.write_text(json.dumps(table.as_json(sitting.machine, about, rows), indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = default_folder()
    add = parser.add_argument
    add("--model", choices=MODELS, default="kimi")
    add("--layers", type=int, default=None, help="how many of the model's layers; targets are for the default alone")
    add("--quick", action="store_true", help="fewer rows and repeats, and no transformers: a few minutes")
    add("--no-transformers", action="store_true", help="llama.cpp is the only peer")
    add("--rows", action="append", metavar="PATTERN", help="only rows of this name, * for anything; may be repeated")
    add("--only", choices=("perilune", "llama.cpp"), default=None, help="one engine alone")
    add("--profile", action="store_true", help="with --only perilune: where the last run of each row spent its time")
    add("--repeats", type=int, default=None, help="runs per row and engine, of which the median counts [5; quick 3]")
    add("--threads", type=int, default=physical_cores())
    add("--chunk", type=int, default=512, help="prompt tokens computed at once, in both engines")
    add("--flash", choices=("split", "on", "off"), default="split", help="llama.cpp: where flash attention is on")
    add("--slices", type=Path, default=cache / "slices", help="where slices are kept [%(default)s]")
    add("--peer-env", type=Path, default=cache / "llama_cpp", help="llama.cpp's environment [%(default)s]")
    add("--json", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.repeats is None:
        arguments.repeats = 3 if arguments.quick else 5
    if arguments.profile and arguments.only != "perilune":
        parser.error("--profile slows perilune; use it with --only perilune")
    return arguments


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the measuring processes are ended too
    sys.exit(main())
