"""What a pair of GGUF files does in this engine beside llama.cpp alone and beside torch, in turn:

    python -m foreal_core.benchmark.gguf --leader LEADER.gguf --draft DRAFT.gguf --threads 2

The leader alone is compared with `llama_decode` in a loop, one request and eight together; mixed
texts with what their own passes take there; the leader in torch is timed on request.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreal_core.backends.llama_cpp.library import library
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.benchmark.llama_loop import LibraryLoop, Pass, library_loop, replay
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import FoReaLError
from foreal_core.events import DRAFT, LEADER, Author, Generation
from foreal_core.loading.gguf import GGUFSource
from foreal_core.records import provenance
from foreal_core.records.files import write_record

_CHAT = "Ann has 3 boxes with 12 apples each and gives a third of them away. How many are left?"
_TOGETHER = 8
_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
_CELLS = 2048
# Ways of writing, by name.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "leader": {"policy": "leader"},
    "draft": {"policy": "draft"},
    "foreal": {"policy": "foreal", "lead_probability": 1.0},
    "foreal, no proposals": {"policy": "foreal", "lead_probability": 1.0, "speculate": False},
    "even, p=0.6": {"policy": "even", "lead_probability": 0.6},
    "even, p=0.6, no proposals": {"policy": "even", "lead_probability": 0.6, "speculate": False},
    "review": {"policy": "review"},
}
Record = dict[str, Any]


def measure_pair(
    leader: str, draft: str, *, threads: int, tokens: int, together: int, repeats: int
) -> Record:
    """One pair at one number of threads, everything in turn within each repeat.

    Args:
        leader, draft: files.
        tokens: of each text.
        together: of each of eight texts written at once.
        repeats: after one that warms up.

    Returns medians, and all values where there are several, JSON-safe.
    """
    models = {
        author: GGUFSource(author, name, {}).load(None, None)
        for author, name in ((LEADER, leader), (DRAFT, draft))
    }
    (first, tokenizer), (second, _) = models[LEADER], models[DRAFT]
    taken: dict[str, list[float]] = {}
    ways: dict[str, list[Record]] = {name: [] for name in WAYS}
    with (
        FoReaLDecoder(
            first, second, tokenizer, threads=threads, max_batch_size=_TOGETHER, prefix_cache=False
        ) as decoder,
        _loops(first, second, threads) as (one, several, loops),
    ):
        [short_text] = _written(decoder, [_CHAT], 2, {"policy": "leader"})
        depth = short_text.cost.prompt_tokens
        for repeat in range(repeats + 1):
            short = 8 if repeat == 0 else tokens
            of_each = 4 if repeat == 0 else together
            decoder.check_integrity()
            figures = {
                "library, 1": one.write(depth=depth, tokens=short, rows=1),
                f"library, {_TOGETHER}": several.write(depth=8, tokens=of_each, rows=_TOGETHER),
                "engine, 1": _speed(_written(decoder, [_CHAT], short, {"policy": "leader"})),
                f"engine, {_TOGETHER}": _speed(
                    _written(
                        decoder,
                        [f"{name} has 12 apples" for name in _NAMES],
                        of_each,
                        {"policy": "leader"},
                    )
                ),
            }
            found = {name: _mixed(decoder, loops, way, short) for name, way in WAYS.items()}
            if repeat == 0:
                continue
            for name, value in figures.items():
                taken.setdefault(name, []).append(value)
            for name, run in found.items():
                ways[name].append(run)
    return {
        "file_type": _file_type(first),
        "leader": Path(leader).name,
        "draft": Path(draft).name,
        "bytes": {"leader": Path(leader).stat().st_size, "draft": Path(draft).stat().st_size},
        "threads": threads,
        "prompt_tokens": depth,
        "tokens": tokens,
        "tokens_together": together,
        "tokens_per_second": {
            name: {"median": median(values), "all": values} for name, values in taken.items()
        },
        "engine_over_library": {
            str(rows): _ratio(taken[f"engine, {rows}"], taken[f"library, {rows}"])
            for rows in (1, _TOGETHER)
        },
        "ways": {name: _summary(found) for name, found in ways.items()},
        "proposals_over_none": {
            name: _ratio(
                [found["seconds_per_token"] for found in ways[name]],
                [found["seconds_per_token"] for found in ways[f"{name}, no proposals"]],
            )
            for name in ("foreal", "even, p=0.6")
        },
    }


def measure_torch(folder: str, *, threads: int, tokens: int, repeats: int) -> Record:
    """Tokens per second of a leader alone in torch, in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with FoReaLDecoder(model, model, tokenizer, threads=threads, max_batch_size=1) as decoder:
        values = [
            _speed(_written(decoder, [_CHAT], 8 if repeat == 0 else tokens, {"policy": "leader"}))
            for repeat in range(repeats + 1)
        ][1:]
    return {
        "dtype": "bfloat16",
        "threads": threads,
        "tokens": tokens,
        "tokens_per_second": {"median": median(values), "all": values},
    }


@contextmanager
def _loops(
    leader: LlamaModel, draft: LlamaModel, threads: int
) -> Iterator[tuple[LibraryLoop, LibraryLoop, dict[Author, LibraryLoop]]]:
    """The leader's loop for one request, that for eight, and both models' for their passes."""
    common: Record = {"cells": _CELLS, "threads": threads}
    with (
        library_loop(leader, rows=1, unified=True, **common) as one,
        library_loop(leader, rows=_TOGETHER, unified=False, **common) as several,
        library_loop(draft, rows=1, unified=True, **common) as of_draft,
    ):
        yield one, several, {LEADER: one, DRAFT: of_draft}


def _written(
    decoder: FoReaLDecoder, prompts: Sequence[str], tokens: int, way: Mapping[str, Any]
) -> list[Generation]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    written: list[Generation] = decoder.generate(
        messages=chats, max_new_tokens=tokens, min_tokens=tokens, temperature=0.0, **way
    )
    return written


def _speed(written: Sequence[Generation]) -> float:
    """Tokens per second after the first one of each text."""
    seconds = [one.cost.seconds for one in written]
    tokens = sum(one.cost.completion_tokens - 1 for one in written)
    return tokens / (max(s["total"] for s in seconds) - max(s["first_token"] for s in seconds))


def _mixed(
    decoder: FoReaLDecoder, loops: Mapping[Author, LibraryLoop], way: Mapping[str, Any], tokens: int
) -> Record:
    """One text, prompt included, and its passes once more without the engine."""
    with _recorded(decoder) as passes:
        start = time.perf_counter()
        [written] = _written(decoder, [_CHAT], tokens, way)
        seconds = time.perf_counter() - start
    decoder.check_integrity()  # waits until the engine rests
    bare = replay(loops, passes)
    counts = {author: [one.tokens for one in passes if one.author == author] for author in loops}
    return {
        "seconds": seconds,
        "library_seconds": bare,
        "seconds_per_token": written.cost.seconds["total"] / tokens,
        "leader_tokens": written.cost.leader_tokens,
        "passes": {author: len(count) for author, count in counts.items()},
        "tokens_read": {author: sum(count) for author, count in counts.items()},
    }


@contextmanager
def _recorded(decoder: FoReaLDecoder) -> Iterator[list[Pass]]:
    """The passes that the engine runs within the block."""
    passes: list[Pass] = []
    runners: Any = decoder._engine.executor.runners  # type: ignore[union-attr]
    for author, runner in runners.items():
        runner.forward = _noting(author, runner.forward, passes)
    try:
        yield passes
    finally:
        for runner in runners.values():
            del runner.forward


def _noting(author: Author, forward: Any, passes: list[Pass]) -> Any:
    def noted(chunks: Any, drawn: Any = None) -> Any:
        passes.append(Pass(author, list(chunks)))
        return forward(chunks, drawn)

    return noted


def _file_type(model: LlamaModel) -> str:
    """As llama-quantize names it."""
    names = [name for name in dir(library()) if name.startswith("LLAMA_FTYPE_")]
    known = {getattr(library(), name): name.rpartition("MOSTLY_")[2] for name in names}
    return known.get(model.header.metadata.get("general.file_type"), "F32")


def _ratio(these: Sequence[float], those: Sequence[float]) -> Record:
    ratios = [one / other for one, other in zip(these, those, strict=True)]
    return {"median": median(ratios), "all": ratios}


def _summary(found: Sequence[Record]) -> Record:
    return {
        "seconds_per_token": median(one["seconds_per_token"] for one in found),
        "over_library": _ratio(
            [one["seconds"] for one in found], [one["library_seconds"] for one in found]
        ),
        "runs": list(found),
    }


def main() -> None:
    """Prints one JSON object, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leader", required=True, action="append", help="a file; repeatable")
    parser.add_argument("--draft", required=True, action="append", help="one for each leader")
    parser.add_argument("--torch-leader", help="a folder or hub id, timed in bfloat16")
    parser.add_argument("--threads", type=int, action="append", help="repeat it for several")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--together", type=int, default=24, help="tokens of each of eight texts")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the record; printed if not given")
    asked = parser.parse_args()
    counts = asked.threads or [torch.get_num_threads()]
    record: Record = {
        "kind": "gguf",
        "machine": provenance.machine(),
        "versions": {**provenance.versions(), "llama_cpp_python": version("llama_cpp_python")},
        "pairs": [],
        "torch": [],
    }
    try:
        for threads in counts if asked.torch_leader else ():
            record["torch"].append(
                measure_torch(
                    asked.torch_leader, threads=threads, tokens=asked.tokens, repeats=asked.repeats
                )
            )
            _write(record, asked.out)
        for leader, draft in zip(asked.leader, asked.draft, strict=True):
            for threads in counts:
                record["pairs"].append(
                    measure_pair(
                        leader,
                        draft,
                        threads=threads,
                        tokens=asked.tokens,
                        together=asked.together,
                        repeats=asked.repeats,
                    )
                )
                _write(record, asked.out)
    except FoReaLError as error:
        parser.error(str(error))
    if asked.out is None:
        print(json.dumps(record, indent=1))


def _write(record: Record, out: Path | None) -> None:
    if out is not None:
        write_record(out, record)


if __name__ == "__main__":
    main()
