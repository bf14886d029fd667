"""Free memory of a device, from torch, the kernel and the control group."""

from __future__ import annotations

from pathlib import Path

import torch

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def free_memory(where: str) -> int | None:
    """Free bytes of a device, "auto" for all accelerators or else the host; None where that is not
    known."""
    if where == "auto":
        if torch.cuda.is_available():
            return sum(_free_on_cuda(index) for index in range(torch.cuda.device_count()))
        return None if torch.accelerator.is_available() else free_memory("cpu")
    try:
        device = torch.device(where)
    except RuntimeError:
        return None  # loading will say that there is no such device
    if device.type == "cuda" and torch.cuda.is_available():
        return _free_on_cuda(device)
    if device.type == "cpu":
        return _free_on_host()
    return None


def _free_on_cuda(device: torch.device | int) -> int:
    """What the device has, and what torch keeps there for later and nobody uses."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + int(kept)


def _free_on_host() -> int | None:
    """Of the machine or, if that is less, of the container that this process runs in (Linux)."""
    known = [one for one in (_available(), _left_in_container()) if one is not None]
    return min(known, default=None)


def _available() -> int | None:
    table = Path("/proc/meminfo")
    for line in table.read_text(encoding="utf-8").splitlines() if table.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_container() -> int | None:
    """What the control group's limit leaves, files that were read and can be dropped not counted;
    None without a limit."""
    for folder, most, used, files in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            group = _CONTROL_GROUPS / folder
            limit = int((group / most).read_text())  # "max" is no number: no limit
            in_use = int((group / used).read_text())
            statistics = dict(map(str.split, (group / "memory.stat").read_text().splitlines()))
            return max(limit - in_use + int(statistics.get(files, 0)), 0)
        except (OSError, ValueError):
            continue
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)  # torch's allocator for CPUs raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "can't allocate memory" in text


def forget_cached_blocks() -> None:
    """Gives blocks that torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_words(count: float) -> str:
    """A number of bytes for people."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
