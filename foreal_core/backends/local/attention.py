"""Attention of rows at positions of their own: masks and functions in transformers' registry.

A mask and a function go by each of two names. `ATTENTION_NAME` is for what PyTorch's SDPA can. A
pass over any other cache than ours (a plain `generate` on a model that an engine has) gets the
stock mask, and all but short queries the stock function. `EAGER_NAME` is for attention that does
more (soft-capping: Gemma 2; sinks: gpt-oss): the family's own mathematics, written out in the file
that its layers come from, under a mask of numbers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

ATTENTION_NAME = "foreal_rows"
EAGER_NAME = "foreal_rows_eager"
# Longer ones are prompts: there the stock kernels do well.
_FEW_QUERIES = 64


def row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The model's own mask (causal, sliding, chunked) at each row's own positions.

    Returns a boolean [B, 1, q_length, kv_length], or None where attention needs no mask.
    """
    if not isinstance(q_offset, Tensor) or q_offset.ndim == 0:
        stock: Tensor | None = sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            device=device,
            **kwargs,
        )
        return stock
    query = q_offset.to(device)[:, None] + torch.arange(q_length, device=device)
    batch = torch.arange(batch_size, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    key = torch.arange(kv_length, device=device)[None, None, None, :]
    mask: Tensor = mask_function(batch, head, query[:, None, :, None], key)
    return mask.expand(batch_size, 1, q_length, kv_length)


def row_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA of few queries without copying keys and values for each query head.

    With g query heads per key-value head, [B, H, q, d] queries are as good as [B, H / g, g q, d]
    ones. On a CPU in bfloat16 that also spares the kernel for a single query, which is several
    times slower than that for two.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    rows = groups * length
    single = rows == 1 and query.device.type == "cpu" and query.dtype != torch.float32
    masked_alike = attention_mask is None or attention_mask.shape[1] == 1
    causal = length > 1 and attention_mask is None
    if (
        (groups == 1 and not single)
        or length > _FEW_QUERIES
        or causal
        or not masked_alike
        or kwargs.get("position_bias") is not None
    ):
        stock: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return stock
    folded = query.reshape(batch, key.shape[1], rows, width)
    if single:
        # A real copy: two queries at one address take the kernel twice as long.
        folded = folded.repeat(1, 1, 2, 1)
    if attention_mask is not None and length > 1:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    attended = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, scale=scaling
    )
    attended = attended[:, :, :rows].reshape(batch, heads, length, value.shape[-1])
    return attended.transpose(1, 2).contiguous(), None


def eager_row_mask(*, q_offset: Any = 0, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """As `row_mask`, in numbers [B, 1, q_length, kv_length] that are added to the scores."""
    if not isinstance(q_offset, Tensor) or q_offset.ndim == 0:
        return eager_mask(q_offset=q_offset, dtype=dtype, **kwargs)
    seen = row_mask(q_offset=q_offset, **kwargs)
    assert seen is not None
    nothing = torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, nothing, torch.finfo(dtype).min)


def eager_row_attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The family's own attention, operation by operation."""
    return own_attention(type(module))(module, *args, **kwargs)


def own_attention(layer: type) -> Callable[..., Any]:
    """The function that a family's attention layers fall back to: transformers has one in each of
    its model files.

    Raises:
        LookupError: there is none.
    """
    function = getattr(sys.modules[layer.__module__], "eager_attention_forward", None)
    if not callable(function):
        raise LookupError(f"{layer.__module__} has no eager_attention_forward")
    return function  # type: ignore[no-any-return]


def cache_argument(function: Callable[..., Any]) -> str:
    """What a model's forward, or a function that makes masks, calls its cache: "past_key_values"
    up to transformers 5.23, "cache" from 5.24 on; "cache_params" where it holds states alone."""
    names = inspect.signature(function).parameters
    return next((one for one in ("cache", "cache_params") if one in names), "past_key_values")


AttentionInterface.register(ATTENTION_NAME, row_attention)
AttentionMaskInterface.register(ATTENTION_NAME, row_mask)
AttentionInterface.register(EAGER_NAME, eager_row_attention)
AttentionMaskInterface.register(EAGER_NAME, eager_row_mask)
