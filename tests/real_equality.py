"""Whether real models write what transformers' `generate` writes: one command.

    python tests/real_equality.py FOLDER                   all, into records/real-equality.json
    python tests/real_equality.py FOLDER smollm2 gemma3    these alone; the record keeps the others
    python tests/real_equality.py FOLDER pair --prompts 2 --tokens 40    a shorter run; it says so

FOLDER holds each model twice: NAME/, as transformers saves it, and NAME.gguf, which transformers
dequantises (`backend="torch"`). In float32, greedy, five prompts of 120 tokens are written by
`generate`, each by itself, and by the decoder in one batch, under every policy that ought to write
what one model alone writes. A model that is its own draft ought to under all policies that add no
words.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreal_core import FoReaLDecoder, Generation

RECORD = Path(__file__).resolve().parents[1] / "records" / "real-equality.json"
# Leader and draft by the names of their files.
PAIRS = {
    "smollm2": ("smollm2", "smollm2"),
    "gemma3": ("gemma3", "gemma3"),
    "draft": ("draft", "draft"),
    "pair": ("leader", "draft"),
}
SOURCES = ("folder", "gguf")
TOKENS = 120
QUESTIONS = (
    "Natalia sold clips to 48 of her friends in April, and half as many in May. How many in all?",
    "Write a Python function that checks whether a number is prime, and explain it.",
    "List the planets of the solar system as bullets with a short remark on each.",
    "Erkläre in drei Sätzen, wie ein Kühlschrank funktioniert.",
    "Write a dialogue in which two friends argue about money.",
)
HUGE = 10**6
# What ought to be the text of one model, whatever the other is.
ALONE: dict[str, dict[str, dict[str, Any]]] = {
    "leader": {
        "leader": {"policy": "leader"},
        "leader, speculate=False": {"policy": "leader", "speculate": False},
        "foreal p=1, n huge": {"lead_probability": 1.0, "lead_count": HUGE},
        "even p=1, n huge": {"policy": "even", "lead_probability": 1.0, "lead_count": HUGE},
        "draft, lead_first huge": {"policy": "draft", "lead_first": HUGE},
        "review tolerance=1": {"policy": "review", "policy_options": {"tolerance": 1.0}},
    },
    "draft": {
        "draft": {"policy": "draft"},
        "foreal p=0": {"lead_probability": 0.0},
        "review tolerance=0": {"policy": "review", "policy_options": {"tolerance": 0.0}},
    },
}
# The same where both models are one.
ITSELF: dict[str, dict[str, Any]] = {
    "foreal": {"seed": 1},
    "foreal, speculate=False": {"seed": 1, "speculate": False},
    "even p=0.4": {"policy": "even", "lead_probability": 0.4, "seed": 1},
    "entropy": {"policy": "entropy", "seed": 1},
    "cues": {"policy": "cues", "seed": 1},
    "review tolerance=0.3": {"policy": "review", "policy_options": {"tolerance": 0.3}, "seed": 1},
}


@dataclass(frozen=True)
class Text:
    """What `generate` wrote, and how far the best logit was from the second at each token."""

    ids: list[int]
    gaps: list[float]


def source_of(folder: Path, name: str, source: str) -> str:
    return str(folder / (f"{name}.gguf" if source == "gguf" else name))


def prompts_of(folder: Path, name: str, source: str, count: int) -> list[list[int]]:
    """The first questions as the model's template shows them; as they are where there is none."""
    place, options = _as_loaded(folder, name, source)
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    if tokenizer.chat_template is None:
        return [tokenizer(text).input_ids for text in QUESTIONS[:count]]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in QUESTIONS[:count]
    ]


@torch.inference_mode()
def generated(
    folder: Path, name: str, source: str, prompts: Sequence[list[int]], tokens: int
) -> list[Text]:
    """What transformers writes, each prompt by itself."""
    place, options = _as_loaded(folder, name, source)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
    return [_written(model, prompt, tokens) for prompt in prompts]


def _written(model: Any, prompt: list[int], tokens: int) -> Text:
    written = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(written.logits).topk(2).values
    return Text(written.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist())


def _as_loaded(folder: Path, name: str, source: str) -> tuple[Path, dict[str, str]]:
    return (folder, {"gguf_file": f"{name}.gguf"}) if source == "gguf" else (folder / name, {})


def differences(
    written: Sequence[Generation], expected: Sequence[Text]
) -> Iterator[dict[str, Any]]:
    """Where texts part: the prompt's number, the token's, and how near the choice was."""
    for number, (one, other) in enumerate(zip(written, expected, strict=True)):
        ids = list(one.token_ids)
        if ids != other.ids:
            pairs = zip(ids, other.ids, strict=False)
            at = next(
                (i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(other.ids))
            )
            yield {"prompt": number, "token": at, "gap": [*other.gaps, float("inf")][at]}


def runs_of(leader: str, draft: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, whose text is expected, and settings."""
    for role, runs in ALONE.items():
        for name, settings in runs.items():
            yield name, role, settings
    if leader == draft:
        for name, settings in ITSELF.items():
            yield name, "leader", settings


def compare(
    folder: Path, pair: str, source: str, *, count: int = len(QUESTIONS), tokens: int = TOKENS
) -> Iterator[dict[str, Any]]:
    """What one pair from one kind of file wrote, after each of its runs: to `count` prompts at most
    `tokens` tokens each."""
    leader, draft = PAIRS[pair]
    prompts = prompts_of(folder, leader, source, count)
    start = time.perf_counter()
    expected: Mapping[str, list[Text]] = {}
    for name in dict.fromkeys((leader, draft)):
        expected = {**expected, name: generated(folder, name, source, prompts, tokens)}
        gc.collect()
    print(f"{pair}, {source}: generate took {time.perf_counter() - start:.0f} s", flush=True)
    runs: dict[str, Any] = {}
    row = {
        "leader": leader,
        "draft": draft,
        "prompts": len(prompts),
        "max_new_tokens": tokens,
        "tokens": {name: sum(len(one.ids) for one in texts) for name, texts in expected.items()},
        "smallest_gap": min(min(one.gaps) for texts in expected.values() for one in texts),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "runs": runs,
    }
    with FoReaLDecoder.from_pretrained(
        source_of(folder, leader, source),
        source_of(folder, draft, source),
        dtype="float32",
        backend="torch" if source == "gguf" else None,
        max_batch_size=len(prompts),
        threads=torch.get_num_threads(),
    ) as decoder:
        for name, role, settings in runs_of(leader, draft):
            start = time.perf_counter()
            written = decoder.generate(prompts, max_new_tokens=tokens, **settings)
            own = {"leader": leader, "draft": draft}[role]
            apart = list(differences(written, expected[own]))
            runs[name] = {"text of": role, "equal": len(prompts) - len(apart), "apart": apart}
            print(f"  {name:26} {len(prompts) - len(apart)} of {len(prompts)} equal", end="")
            print(f", {time.perf_counter() - start:.0f} s {apart or ''}", flush=True)
            yield row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the models are")
    parser.add_argument("pair", nargs="*", help=f"of {', '.join(PAIRS)}; all by default")
    parser.add_argument("--source", choices=SOURCES, help="both by default")
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RECORD)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(asked.threads)
    record: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    wrong = 0
    for pair in asked.pair or PAIRS:
        for source in [asked.source] if asked.source else SOURCES:
            for row in compare(
                asked.folder, pair, source, count=asked.prompts, tokens=asked.tokens
            ):
                record.setdefault(pair, {})[source] = row
                asked.out.write_text(json.dumps(record, indent=1) + "\n")
            wrong += sum(bool(run["apart"]) for run in row["runs"].values())
            gc.collect()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
