"""A draft for a model that has no smaller sister: the model itself with coarser weights.

    python benchmarks/rounded_draft.py MODEL FOLDER --bits 3

Every linear layer but the head is rounded to the nearest of 2^BITS levels in groups of 32 weights
of a row, from the group's smallest weight to its largest. What is written are ordinary weights of
the model's own type: where the two part can be measured, a saving cannot.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP = 32


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, columns] weights of `bits` bits, in the type of those that were given."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (((groups - low) / step).round() * step + low).flatten(-2).to(weight.dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a hub id or folder")
    parser.add_argument("folder", type=Path, help="where the draft goes")
    parser.add_argument("--bits", type=int, default=3)
    asked = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear) and layer is not head:
                layer.weight.copy_(rounded(layer.weight, asked.bits))
    model.save_pretrained(asked.folder)
    AutoTokenizer.from_pretrained(asked.model).save_pretrained(asked.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
