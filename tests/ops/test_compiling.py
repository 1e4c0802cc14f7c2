"""A compiler that hangs, aborts or refuses is an error that names kernel and target; a sound one leaves what a launch
then finds. In children that compile: here kernels are interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FINDS = """
from triton import knobs
from triton.runtime.jit import JITFunction
from perilune.ops.gpu import cases
from perilune.ops.gpu.aot import build, source
from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.compiler import Compiler, compile_all, kept
from perilune.ops.gpu.launch import Recorder

arch, hits = ARCHES[{target!r}], []
gpu = Recorder(arch)
cases._sample(gpu)
given, options = source(gpu.launches[0], arch)
assert not kept(given, arch.target, options)
compiler = Compiler.hearing(300)
JITFunction._call_hook(  # as Triton's launcher does before it compiles
    gpu.launches[0].kernel, knobs.runtime.jit_cache_hook, ("", []), given.signature, arch.target, 0, given.constants,
    options, [given.attrs], False,
)
assert kept(given, arch.target, options)
process = compiler._process
compiler.rest()
assert process.poll() is not None
compile_all(gpu.launches, arch, [compiler, Compiler(300)])
assert knobs.runtime.jit_cache_hook is None
knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
for launch in gpu.launches:
    build(launch, arch)
assert hits == [True] * len(gpu.launches), hits
"""

BROKEN = """
import sys
from perilune.ops.gpu import compiler
compiler.COMMAND = (sys.executable, "-c", {child!r})
from perilune.cli.app import main
sys.argv = ["perilune", "ops", "--warm", "--arch", "gfx1151", "--compile-seconds", "1"]
main()
"""

LEAVES = """
import os, sys, threading, time
from perilune.ops.gpu import cases, compiler
from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.launch import Recorder
compiler.COMMAND = (sys.executable, "-c", {child!r})
gpu, one = Recorder(ARCHES["gfx1151"]), compiler.Compiler(300)
cases._sample(gpu)
threading.Thread(target=one.launch, args=(gpu.launches[0], gpu.arch)).start()
while not os.path.exists("compiling"):
    time.sleep(0.01)
print(one._process.pid, flush=True)
os._exit(0)
"""

CHILD = """
import os, sys, time
from triton.backends.amd.compiler import HIPBackend
from perilune.ops.gpu.compiling import main
def stage(*_):
    {does}
HIPBackend.make_llir = staticmethod(stage)
main(int(sys.argv[1]))
"""


def run(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "COLUMNS": "1000"}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=280, cwd=tmp_path
    )


@pytest.mark.parametrize("target", ["gfx1151", "sm_90"])
def test_what_the_other_process_compiles_is_what_a_launch_finds(tmp_path: Path, target: str) -> None:
    done = run(FINDS.format(target=target), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("time.sleep(1000)", "It did not answer for 1 s."),
        ("os.abort()", "It ended with signal 6."),
        ("raise ValueError('no such thing')", "does not compile: ValueError: no such thing"),
    ],
    ids=["hangs", "aborts", "refuses"],
)
def test_a_compiler_that_fails_ends_with_the_kernel_and_the_target(tmp_path: Path, does: str, says: str) -> None:
    done = run(BROKEN.format(child=CHILD.format(does=does)), tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "linear.linear for gfx1151" in said
    assert says in said


def test_the_process_that_compiles_does_not_outlive_the_one_that_asked(tmp_path: Path) -> None:
    done = run(LEAVES.format(child=CHILD.format(does="open('compiling', 'w').close(); time.sleep(1000)")), tmp_path)
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running(pid):
        time.sleep(0.05)
    assert not running(pid)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
