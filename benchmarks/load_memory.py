"""How much memory it takes to load a pair: one command (Linux).

    python benchmarks/load_memory.py LEADER DRAFT [--dtype bfloat16] [--backend torch] [--out FILE]

A process of its own loads the pair and says how many bytes its weights are: the parameters of
torch's models, the files of llama.cpp's. This one reads its `/proc/PID/status` meanwhile, every few
milliseconds. `RssAnon` is private memory, `RssFile` mapped files, whose clean pages the kernel
takes back where somebody needs them. What the process has before it loads (Python, torch) is
subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

KINDS = ("RssAnon", "RssFile")
_INTERVAL = 0.005  # seconds
_LOAD = """
import os, sys
import torch
import transformers.models.auto.modeling_auto
from foreal_core import FoReaLDecoder
leader, draft, dtype, backend = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
options = {} if backend == "llama.cpp" else {"dtype": dtype}
decoder = FoReaLDecoder.from_pretrained(leader, draft, backend=backend or None, **options)
models = decoder.transformers_models.values()
weights = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
print(weights or os.path.getsize(leader) + os.path.getsize(draft), flush=True)
sys.stdin.readline()
"""


def resident(pid: int) -> dict[str, int]:
    """Bytes of each kind that a process has now; none where it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {kind: int(fields.get(kind, "0 kB").split()[0]) * 1024 for kind in KINDS}


def measure(leader: str, draft: str, dtype: str, backend: str) -> dict[str, Any]:
    """Peaks while loading, and what is held after it, in bytes."""
    command = [sys.executable, "-c", _LOAD, leader, draft, dtype, backend]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise SystemExit("the process that loads the pair did not start")
        before = resident(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        peak, samples = dict(before), 0
        while not select.select([child.stdout], [], [], _INTERVAL)[0]:
            now = resident(child.pid)
            peak = {kind: max(peak[kind], now[kind]) for kind in KINDS}
            samples += 1
        loaded = child.stdout.readline()
        if not loaded:
            raise SystemExit("the pair could not be loaded")
        held = resident(child.pid)
    weights = int(loaded)
    return {
        "leader": Path(leader).name,
        "draft": Path(draft).name,
        "backend": backend or "torch",
        "dtype": dtype,
        "weights": weights,
        "samples": samples,
        "peak": {kind: peak[kind] - before[kind] for kind in KINDS},
        "held": {kind: held[kind] - before[kind] for kind in KINDS},
        "private_by_weights": round((peak["RssAnon"] - before["RssAnon"]) / weights, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("leader")
    parser.add_argument("draft")
    parser.add_argument("--dtype", default="bfloat16", help="of torch's models")
    parser.add_argument("--backend", default="", help="of GGUF files: torch or llama.cpp")
    parser.add_argument("--out", type=Path, help="a record, to which this row is added")
    asked = parser.parse_args()
    row = measure(asked.leader, asked.draft, asked.dtype, asked.backend)
    print(json.dumps(row, indent=1))
    if asked.out is not None:
        record = json.loads(asked.out.read_text()) if asked.out.exists() else []
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        row = {**row, "versions": versions, "cores": os.cpu_count()}
        named = ("leader", "draft", "backend", "dtype")
        record = [one for one in record if any(one[name] != row[name] for name in named)]
        asked.out.write_text(json.dumps([*record, row], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
