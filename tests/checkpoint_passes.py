"""How many passes recurrent layers cost: one command.

    python tests/checkpoint_passes.py [PAIR ...]    into records/checkpoint-passes.json

A model with recurrent layers can be put back to checkpoints alone, and reads again what lies
behind them. A pair without such layers writes the same text under the rules for models that have
them, so that passes can be compared: in float32, at p=0.6, the bundled pair as it is ("tiny") and
at the size of the preset "cpu", there with a draft of a quarter of its leader.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.demo import DOMAINS, pair_paths, problems
from foreal_core.demo.real_size import PRESETS, Shape, enlarge
from foreal_core.events import DRAFT, LEADER

AUTHORS = (LEADER, DRAFT)
RECORD = Path(__file__).resolve().parents[1] / "records" / "checkpoint-passes.json"
PROBLEMS = 4  # of each domain
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


def compare(pair: str) -> dict[str, Any]:
    """Passes of each model under both rules, over the same texts.

    Raises:
        ValueError: the texts differ.
    """
    asked = [one.messages for domain in DOMAINS for one in problems(domain, 2026, PROBLEMS)]
    leader, draft = models_of(pair)
    tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
    with FoReaLDecoder(leader, draft, tokenizer, prefix_cache=False) as decoder:
        texts, passes, read = [], [], []
        for recurrent in (frozenset(), frozenset(AUTHORS)):
            decoder._engine.executor.recurrent = recurrent
            written = [decoder.generate(messages=one, config=ASKED, seed=1) for one in asked]
            texts.append([one.token_ids for one in written])
            passes.append(
                {name: sum(one.cost.forward_passes[name] for one in written) for name in AUTHORS}
            )
            read.append(sum(one.cost.flops["leader"] for one in written))
        weights = {
            name: profile.weight_bytes
            for name, profile in decoder._engine.executor.profiles.items()
        }
    if texts[0] != texts[1]:
        raise ValueError(f"{pair}: the rules of checkpoints changed a text")
    free, bound = passes
    return {
        "texts": len(asked),
        "tokens": sum(map(len, texts[0])),
        "leader_by_draft": round(weights["leader"] / weights["draft"], 2),
        "passes": {"anywhere": free, "checkpoints": bound},
        "ratio": {name: round(bound[name] / free[name], 3) for name in AUTHORS},
        "leader_flops_ratio": round(read[1] / read[0], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="*", help=f"of {', '.join(PAIRS)}; all by default")
    parser.add_argument("--out", type=Path, default=RECORD)
    asked = parser.parse_args()
    record: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for pair in asked.pair or PAIRS:
        record[pair] = compare(pair)
        print(pair, json.dumps(record[pair]), flush=True)
        asked.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
