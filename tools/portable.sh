#!/usr/bin/env bash
# The kernels' baseline path as an aarch64 program, run by an emulator where this processor is another.
#
#   tools/portable.sh      Debian: apt install g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [[ $(uname -m) == aarch64 ]]; then
  compiler=${CXX:-c++} emulator=
else
  compiler=aarch64-linux-gnu-g++ emulator="qemu-aarch64 -L /usr/aarch64-linux-gnu"
fi
"$compiler" -std=c++17 -O2 -fno-math-errno -fno-trapping-math -fopenmp -Wall -DPERILUNE_VARIANT=portable \
  csrc/variant.cpp tests/portable/check.cpp -o "$folder/check"
$emulator "$folder/check"
