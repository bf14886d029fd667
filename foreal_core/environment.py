"""Where a record was made: machine and versions, JSON-safe."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Processor, cores, threads, GPU and the load at this moment."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("foreal-decoding", "torch", "transformers")},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # Linux; elsewhere `platform` knows the name
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
