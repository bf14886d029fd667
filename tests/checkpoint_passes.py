"""How many passes recurrent layers cost: one command.

    python tests/checkpoint_passes.py [PAIR ...]    into records/checkpoint-passes.json

A model with recurrent layers can be put back to checkpoints alone, and reads again what lies
behind them. A pair without such layers and a hybrid pair that writes the same texts
(`hybrid_models.py`) are compared: in float32, at p=0.6, the bundled pair as it is ("tiny") and at
the size of the preset "cpu", there with a draft of a quarter of its leader.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hybrid_models import with_recurrent_layers
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.demo import DOMAINS, pair_paths, problems
from foreal_core.demo.real_size import PRESETS, Shape, enlarge
from foreal_core.events import DRAFT, LEADER

AUTHORS = (LEADER, DRAFT)
RECORD = Path(__file__).resolve().parents[1] / "records" / "checkpoint-passes.json"
ASKED = FoReaLConfig(lead_probability=0.6, max_new_tokens=64)
_LEADER = PRESETS["cpu"][0]
_QUARTER = Shape(640, 2240, 12, 10, 10, 64, _LEADER.vocab_size, tie_word_embeddings=True)
PAIRS: dict[str, tuple[Shape, Shape] | None] = {"tiny": None, "cpu": (_LEADER, _QUARTER)}


def models_of(pair: str) -> list[Any]:
    """Leader and draft in float32."""
    paths, shapes = pair_paths(), PAIRS[pair]
    small = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in paths]
    if shapes is None:
        return small
    return [enlarge(model, shape) for model, shape in zip(small, shapes, strict=True)]


@dataclass(frozen=True)
class Counted:
    """What a pair wrote, and what it took.

    Attributes:
        passes, read: forward passes and tokens in them, by author.
        weights: bytes of a pass, by author.
    """

    texts: list[list[int]]
    passes: dict[str, int]
    read: dict[str, int]
    weights: dict[str, float]


def count(leader: Any, draft: Any, each: int, *, recurrent: bool) -> Counted:
    """Writes the answers to `each` problems of every domain, one after the other."""
    asked = [one.messages for domain in DOMAINS for one in problems(domain, 2026, each)]
    tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
    with FoReaLDecoder(leader, draft, tokenizer, prefix_cache=False) as decoder:
        assert decoder._engine.executor.recurrent == (set(AUTHORS) if recurrent else set())
        written = [decoder.generate(messages=one, config=ASKED, seed=1) for one in asked]
        return Counted(
            [one.token_ids for one in written],
            {name: sum(one.cost.forward_passes[name] for one in written) for name in AUTHORS},
            {
                name: sum(sum(one.cost.forward_tokens[name].values()) for one in written)
                for name in AUTHORS
            },
            {name: profile.weight_bytes for name, profile in decoder.profiles.items()},
        )


def compare(pair: str, each: int) -> dict[str, Any]:
    """Passes of each model, without and with recurrent layers, over the same texts.

    Raises:
        ValueError: the texts differ.
    """
    plain = count(*models_of(pair), each, recurrent=False)
    hybrid = count(*map(with_recurrent_layers, models_of(pair)), each, recurrent=True)
    if plain.texts != hybrid.texts:
        raise ValueError(f"{pair}: the hybrid wrote another text")
    return {
        "texts": len(plain.texts),
        "tokens": sum(map(len, plain.texts)),
        "leader_by_draft": round(hybrid.weights["leader"] / hybrid.weights["draft"], 2),
        "passes": {"plain": plain.passes, "hybrid": hybrid.passes},
        "ratio": {name: round(hybrid.passes[name] / plain.passes[name], 3) for name in AUTHORS},
        "read": {"plain": plain.read, "hybrid": hybrid.read},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="*", help=f"of {', '.join(PAIRS)}; all by default")
    parser.add_argument("--problems", type=int, default=4, help="of each domain")
    parser.add_argument("--out", type=Path, default=RECORD)
    asked = parser.parse_args()
    record: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for pair in asked.pair or PAIRS:
        record[pair] = compare(pair, asked.problems)
        print(pair, json.dumps(record[pair]), flush=True)
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
