"""How long requests may get on GPUs, where the cache is sized once, when a pair is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from foreal_core.backends.local.kv_cache import SPARE_SLOTS
from foreal_core.backends.local.memory import free_memory
from foreal_core.errors import ConfigError
from foreal_core.loading.placement import cache_bytes
from foreal_core.numbers import is_number

_logger = logging.getLogger(__name__)


def context_that_fits(
    context: int, models: Sequence[Any], *, rows: int, promised: bool, utilization: float
) -> int:
    """The context of `rows` requests side by side that loaded models leave room for.

    Models on CPUs, and those that are spread over several devices, grow their caches on demand and
    count for nothing here.

    Args:
        context: positions of a request, at most.
        promised: whether the user asked for that many: less is an error then.
        utilization: share of each CUDA device's memory that may be used, what is in use included.

    Raises:
        ConfigError: `utilization` is no share, or there is no room.
    """
    if not is_number(utilization) or not 0 < utilization <= 1:
        raise ConfigError(
            f"gpu_memory_utilization={utilization!r} is not allowed: a number above 0, at most 1."
        )
    needed: dict[torch.device, int] = {}
    for model in models:
        devices = {parameter.device for parameter in model.parameters()}
        device = devices.pop()
        if not devices and device.type == "cuda":
            size = cache_bytes(model.config, model.dtype.itemsize)
            needed[device] = needed.get(device, 0) + size
    fitting = context
    for device, size in needed.items():
        room = _room(device, utilization)
        positions = room // (rows * size) - SPARE_SLOTS
        if positions < (context if promised else 2):
            raise ConfigError(
                f"max_batch_size={rows} requests of max_context={context} positions need "
                f"{rows * (context + SPARE_SLOTS) * size / 1e9:.3g} GB on {device}, and "
                f"gpu_memory_utilization={utilization} leaves {room / 1e9:.3g} GB beside the "
                f"models. With this batch a context of {max(positions, 0)} fits, with this context "
                f"a batch of {room // ((context + SPARE_SLOTS) * size)}."
            )
        fitting = min(fitting, positions)
    if fitting < context:
        _logger.info("max_context is %d: %d rows of more do not fit", fitting, rows)
    return fitting


def _room(device: torch.device, utilization: float) -> int:
    """Bytes that are left of the share."""
    total = torch.cuda.get_device_properties(device).total_memory
    free = free_memory(str(device)) or 0
    return max(int(utilization * total) - (total - free), 0)
