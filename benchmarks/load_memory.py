"""How much memory it takes to load a pair: one command (Linux).

    python benchmarks/load_memory.py LEADER DRAFT [--dtype bfloat16] [--out FILE]

A process of its own loads the pair and says what its weights are; this one reads its
`/proc/PID/status` meanwhile, every few milliseconds. `RssAnon` is private memory, `RssFile` mapped
files, whose clean pages the kernel takes back where somebody needs them. What the process has
before it loads (Python, torch) is subtracted.
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
import sys
import torch
import transformers.models.auto.modeling_auto
from foreal_core import FoReaLDecoder
leader, draft, dtype = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
backend = "torch" if leader.endswith(".gguf") else None
decoder = FoReaLDecoder.from_pretrained(leader, draft, dtype=dtype, backend=backend)
print(sum(p.numel() * p.element_size() for m in decoder.transformers_models.values()
          for p in m.parameters()), flush=True)
sys.stdin.readline()
"""


def resident(pid: int) -> dict[str, int]:
    """Bytes of each kind that a process has now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {kind: int(fields[kind].split()[0]) * 1024 for kind in KINDS}


def measure(leader: str, draft: str, dtype: str) -> dict[str, Any]:
    """Peaks while loading, and what is held after it, in bytes."""
    command = [sys.executable, "-c", _LOAD, leader, draft, dtype]
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
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, help="a record, to which this row is added")
    asked = parser.parse_args()
    row = measure(asked.leader, asked.draft, asked.dtype)
    names = [Path(name).name for name in (asked.leader, asked.draft)]
    print(json.dumps({" and ".join(names): row}, indent=1))
    if asked.out is not None:
        record = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        record[" and ".join(names)] = {**row, "versions": versions, "cores": os.cpu_count()}
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
