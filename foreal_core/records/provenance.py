"""Where a record was made: machine, versions and models, JSON-safe."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parent.parent
# Bytes of weights whose digest is worth the time.
_LARGEST_DIGESTED = 2**30


def machine() -> dict[str, Any]:
    """Processor, the vector instructions that torch uses on it, cores, threads, GPU and the load
    at this moment."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("foreal-decoding", "torch", "transformers")},
    }


def models(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What identifies each model: its name, and for a local folder a digest of its weights.

    Names of the bundled models start at the package, wherever that is installed.
    """
    return {role: _identity(Path(name), name) for role, name in names.items()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"  # run from its sources


def _identity(folder: Path, name: str) -> dict[str, str]:
    if folder.is_relative_to(_PACKAGE):
        name = folder.relative_to(_PACKAGE.parent).as_posix()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or sum(file.stat().st_size for file in files) > _LARGEST_DIGESTED:
        return {"name": name}
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return {"name": name, "sha256": digest.hexdigest()[:16]}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # Linux; elsewhere `platform` knows the name
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
