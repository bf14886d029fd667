"""What a grammar forbids, taken out of the logits of a pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foreal_core.backends.base import RowPass


def constrained(parts: Sequence[RowPass], logits: Tensor) -> Tensor:
    """The logits [sum of keep, V] with minus infinity where a part's mask rules an id out."""
    rows, masks, first = [], [], 0
    for part in parts:
        for row, mask in enumerate(part.masks, start=first):
            if mask is not None:
                rows.append(row)
                masks.append(mask)
        first += part.chunk.keep
    if not rows:
        return logits
    ruled_out = torch.from_numpy(~np.stack(masks)).to(logits.device)
    index = torch.tensor(rows, device=logits.device)
    return logits.index_copy(0, index, logits[index].masked_fill(ruled_out, -torch.inf))
