#!/usr/bin/env bash
# torch 2.13.0 on x86 processors with AVX-512 instructions for bfloat16: one bfloat16 linear layer
# holds several hundred kilobytes for each number of rows that it has met, up to 1,024 shapes.
#
# Guessed: memory of a pass that is over is free; a layer holds its weight and nothing else.
# Matters to: servers on CPUs, whose passes have any number of tokens: they grow by hundreds of
# megabytes in their first hours, which looks like a leak. LRU_CACHE_CAPACITY together with
# ONEDNN_PRIMITIVE_CACHE_CAPACITY in the environment bounds it; neither does so alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'numpy==2.4.6'
cat >"$work/rows.py" <<'PY'
import ctypes
from importlib.metadata import version

import torch


class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info  # glibc


def in_use() -> float:
    """Megabytes that malloc has given out."""
    info = libc.mallinfo2()
    return (info.uordblks + info.hblkhd) / 1e6


torch.set_num_threads(1)
weight = torch.randn(1926, 642, dtype=torch.bfloat16)


def run(rows: int) -> None:
    torch.nn.functional.linear(torch.randn(rows, 642, dtype=torch.bfloat16), weight)


with torch.inference_mode():
    run(1)
    before = in_use()
    for rows in range(1, 401):
        run(rows)
    print(f"torch {version('torch')}: {in_use() - before:.0f} MB more after 400 numbers of rows")
PY
grep -q avx512_bf16 /proc/cpuinfo || { echo "needs a processor with avx512_bf16"; exit 2; }
seen() {
    env "$@" "$work/venv/bin/python" "$work/rows.py" | tee "$work/seen"
    megabytes=$(sed 's/.*: \([0-9]*\) MB.*/\1/' "$work/seen")
}
echo "weight [1926, 642], 2.5 MB"
seen OMP_NUM_THREADS=1
[ "$megabytes" -gt 100 ] || { echo "CHANGED: little is kept"; exit 1; }
for bound in LRU_CACHE_CAPACITY ONEDNN_PRIMITIVE_CACHE_CAPACITY; do
    echo "$bound=16:"
    seen OMP_NUM_THREADS=1 "$bound=16"
    [ "$megabytes" -gt 80 ] || { echo "CHANGED: one bound is enough"; exit 1; }
done
echo "both:"
seen OMP_NUM_THREADS=1 LRU_CACHE_CAPACITY=16 ONEDNN_PRIMITIVE_CACHE_CAPACITY=16
[ "$megabytes" -lt 40 ] || { echo "CHANGED: the bounds do not hold"; exit 1; }
echo "as stated: a hundred times the weight is kept, unless both caches are bounded"
