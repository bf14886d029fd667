"""The machine's memory: bandwidth of a copy, and bytes in use."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

# Beyond every cache.
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
_COPIES = 10


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy on `device`, reads and writes both counted; the best of
    several."""
    size = _COPY_BYTES.get(device.type, _COPY_BYTES["cpu"])
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(_copy_seconds(source, target) for _ in range(_COPIES + 1))
    return 2 * size / best


def memory_in_use(device: torch.device) -> int | None:
    """Bytes: on a GPU the most that was allocated since the last call, else what the process
    holds; None where neither is known."""
    if device.type == "cuda":
        peak = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    statm = Path("/proc/self/statm")  # Linux
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * 4096


def _copy_seconds(source: Tensor, target: Tensor) -> float:
    start = time.perf_counter()
    target.copy_(source)
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    return time.perf_counter() - start
