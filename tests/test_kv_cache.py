"""What the cache hands to attention, where rows are no neighbours."""

from __future__ import annotations

import pytest
import torch

from foreal_core.backends.local.kv_cache import RowCache


def states(value: int, lines: int, width: int) -> torch.Tensor:
    """[B, heads, width, dim]: each line has a number of its own, and so has each layer."""
    own = 10 * value + torch.arange(lines)
    return own[:, None, None, None].expand(lines, 2, width, 4).float()


@pytest.mark.parametrize("one_layer", [False, True])
@torch.inference_mode()
def test_each_layer_sees_its_own_rows(one_layer: bool) -> None:
    cache = RowCache(4, 64)
    for width, start in ((3, 0), (1, 3), (40, 4), (2, 44)):  # also where the memory grows
        rows = [0, 2, 3]
        cache.begin(rows, [start] * 3, [width] * 3, one_layer=one_layer)
        for layer in (1, 2):
            new = states(layer, 3, width), states(layer + 2, 3, width)
            for held, given in zip(cache.update(*new, layer), new, strict=True):
                assert held.shape == (3, 2, start + width, 4)
                assert torch.equal(held, given[:, :, :1].expand_as(held))


@torch.inference_mode()
def test_a_model_may_look_at_an_earlier_layer_again() -> None:
    cache = RowCache(4, 64)
    cache.begin([0, 2], [0, 0], [3, 3])
    first = states(1, 2, 3), states(2, 2, 3)
    kept = cache.update(*first, 0)
    cache.update(states(3, 2, 3), states(4, 2, 3), 1)
    assert all(map(torch.equal, kept, first))
