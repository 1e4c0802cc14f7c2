#!/usr/bin/env bash
# The tests of kernels and checksums on an extension built with the address and undefined-behaviour sanitizers, in a folder of its own.
#
#   tools/sanitize.sh [PYTHON]     PYTHON: one that has perilune's dependencies and pytest; .venv's by default
#
# One instruction set, the fastest this processor has: all are made from the same lines, and the tests without
# sanitizers run every one. Leaks are not looked for: Python itself keeps memory until the process ends. Fresh memory is filled with NaN, so that
# what a kernel reads before it wrote shows.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

variant=avx2
grep -qm1 avx512bw /proc/cpuinfo && variant=avx512
grep -qm1 avx512_bf16 /proc/cpuinfo && variant=avx512_bf16
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps -w "$folder" . \
  -C cmake.define.PERILUNE_SANITIZE=ON -C cmake.define.PERILUNE_VARIANTS="$variant"
"$python" -m zipfile -e "$folder"/perilune-*.whl "$folder/site"

# The sanitizers' runtime must come before Python's own allocations.
runtime=$(c++ -print-file-name=libasan.so)
undefined=$(c++ -print-file-name=libubsan.so)
export LD_PRELOAD="$runtime $undefined" ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$folder/site" OMP_NUM_THREADS=2
# An editable install would otherwise answer imports before PYTHONPATH is asked.
"$python" - "$folder" -p no:cacheprovider -n 0 tests/ops/test_cpu_*.py tests/ops/test_tape.py tests/pd/test_checksum.py <<'RUN'
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__name__.startswith("ScikitBuild")]
import pytest
import torch
import perilune._kernels
built = perilune._kernels.__file__
assert built.startswith(sys.argv[1]), built
assert b"__asan_report" in open(built, "rb").read(), "built without sanitizers"
sys.exit(pytest.main(sys.argv[2:]))
RUN
