"""Which library should run which model of a pair: torch or llama.cpp, one request, in turn:

    python -m foreal_core.benchmark.mixed --leader FOLDER --draft FOLDER \\
        --gguf-leader LEADER.gguf --gguf-draft DRAFT.gguf --threads 2

Each model is loaded once; all combinations write answers to the same questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from foreal_core.benchmark.ratios import clocked
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import FoReaLError
from foreal_core.events import DRAFT, LEADER, Generation
from foreal_core.loading.pair import load_pair
from foreal_core.records import provenance
from foreal_core.records.files import write_record

_QUESTIONS = (
    "Ann has 3 boxes with 12 apples each and gives a third of them away. How many are left?",
    "A train covers 60 km in 45 minutes and then 80 km in one hour. What is its mean speed?",
    "A shirt costs 40 dollars. It is reduced by 25 %, then by 10 dollars. What does it cost now?",
)
# Ways of writing, by name.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "leader": {"policy": "leader"},
    "draft": {"policy": "draft"},
    "speculative": {"policy": "speculative"},
    "review": {"policy": "review"},
    "even, p=0.6": {"policy": "even", "lead_probability": 0.6},
    "foreal, p=1": {"policy": "foreal", "lead_probability": 1.0},
}
_TORCH, _LLAMA = "torch", "llama.cpp"
# What runs the leader, and what the draft.
COMBINATIONS = ((_TORCH, _TORCH), (_TORCH, _LLAMA), (_LLAMA, _LLAMA))
_WARM_UP_TOKENS = 8

Record = dict[str, Any]


def measure_mixed(
    folders: tuple[str, str],
    files: tuple[str, str],
    *,
    dtype: str,
    threads: int,
    tokens: int,
    repeats: int,
) -> Iterator[Record]:
    """Seconds per token, prompt included, of the combinations, all in turn within each repeat.

    Args:
        folders: leader and draft for torch: folders or hub ids.
        files: leader and draft for llama.cpp: GGUF files.
        dtype: of the models that torch runs.
        threads: CPU threads of a pass.
        tokens: of each answer.
        repeats: of all questions, after one answer each that warms up.

    Yields the record so far after each repeat, JSON-safe.
    """
    common: Record = {"device_map": "cpu"}
    options: Record = {"leader_kwargs": {}, "draft_kwargs": {}}
    pairs = {
        _TORCH: load_pair(*folders, common={**common, "dtype": dtype}, **options),
        _LLAMA: load_pair(*files, backend=_LLAMA, common=common, **options),
    }
    about = {
        "kind": "mixed",
        "folders": [Path(folder).name for folder in folders],
        "files": [Path(file).name for file in files],
        "dtype": dtype,
        "threads": threads,
        "tokens": tokens,
        "questions": len(_QUESTIONS),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
    }
    taken: dict[tuple[str, str], dict[str, list[Record]]] = {
        pair: {way: [] for way in WAYS} for pair in COMBINATIONS
    }
    with ExitStack() as opened:
        decoders = {
            (first, second): opened.enter_context(
                FoReaLDecoder(
                    pairs[first].leader,
                    pairs[second].draft,
                    pairs[first].tokenizer,
                    draft_tokenizer=pairs[second].draft_tokenizer,
                    threads=threads,
                    max_batch_size=1,
                    prefix_cache=False,
                )
            )
            for first, second in COMBINATIONS
        }
        for decoder, settings in product(decoders.values(), WAYS.values()):
            _written(decoder, _QUESTIONS[0], _WARM_UP_TOKENS, settings)
        for repeat in range(1, repeats + 1):
            for question in _QUESTIONS:
                for (pair, decoder), (way, settings) in product(decoders.items(), WAYS.items()):
                    taken[pair][way].append(_written(decoder, question, tokens, settings))
            yield {
                **about,
                "repeats": repeat,
                "combinations": [
                    {
                        "leader": first,
                        "draft": second,
                        "ways": {way: _summary(found) for way, found in ways.items()},
                    }
                    for (first, second), ways in taken.items()
                ],
            }


def _written(
    decoder: FoReaLDecoder, question: str, tokens: int, settings: Mapping[str, Any]
) -> Record:
    """One answer's figures."""
    write = partial(
        decoder.generate,
        messages=[{"role": "user", "content": question}],
        max_new_tokens=tokens,
        min_tokens=tokens,
        **settings,
    )
    written: Generation
    seconds, written = clocked(write)
    decoder.check_integrity()  # waits until the engine rests
    cost = written.cost
    return {
        "seconds": seconds / tokens,
        "leader": cost.leader_tokens / tokens,
        "passes": {author: cost.forward_passes[author] / tokens for author in (LEADER, DRAFT)},
    }


def _summary(found: Sequence[Record]) -> Record:
    seconds = [one["seconds"] for one in found]
    return {
        "seconds_per_token": {"median": median(seconds), "all": seconds},
        "leader_share": median(one["leader"] for one in found),
        "passes_per_token": {
            author: median(one["passes"][author] for one in found) for author in (LEADER, DRAFT)
        },
    }


def main() -> None:
    """Writes the record, after each repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leader", required=True, help="for torch: a folder or hub id")
    parser.add_argument("--draft", required=True, help="for torch: a folder or hub id")
    parser.add_argument("--gguf-leader", required=True, help="for llama.cpp: a file")
    parser.add_argument("--gguf-draft", required=True, help="for llama.cpp: a file")
    parser.add_argument("--dtype", default="bfloat16", help="torch's: bfloat16, float32, ...")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="the record")
    asked = parser.parse_args()
    try:
        for record in measure_mixed(
            (asked.leader, asked.draft),
            (asked.gguf_leader, asked.gguf_draft),
            dtype=asked.dtype,
            threads=asked.threads,
            tokens=asked.tokens,
            repeats=asked.repeats,
        ):
            write_record(asked.out, record)
    except FoReaLError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
