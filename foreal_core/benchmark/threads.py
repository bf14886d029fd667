"""What a second CPU thread gains: the engine against transformers' `generate` and llama.cpp, at
each number of threads, alone and while the user's own thread computes between calls:
`python -m foreal_core.benchmark.threads --model FOLDER`. With `--gguf FILE` the engine runs that
file as well, through llama.cpp."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreal_core.backends.local.threads import give_back_threads
from foreal_core.benchmark.ratios import clocked
from foreal_core.decoder import FoReaLDecoder
from foreal_core.events import LEADER
from foreal_core.extras import extra_module
from foreal_core.loading.gguf import GGUFSource
from foreal_core.records import provenance

_PROMPT = "Write a long story about a lighthouse keeper who finds a map."
# As a small embedding model does: a few layers over a passage.
_PASSAGE, _WIDTH, _LAYERS = 256, 384, 12


def measure_threads(
    name: str,
    *,
    dtype: str,
    threads: Sequence[int],
    tokens: int,
    repeats: int,
    gguf: str | None = None,
) -> dict[str, Any]:
    """Tokens per second of the leader alone, greedy, everything in turn within each repeat.

    Args:
        gguf: a GGUF file of the same weights and precision, for llama.cpp and for the engine over
            it.

    Returns a record, JSON-safe: medians by way and number of threads, and the ratios of the engine
    to the others and of each number of threads to the first.
    """
    tokenizer = AutoTokenizer.from_pretrained(name)
    ours = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()
    theirs = copy.deepcopy(ours)  # a decoder's models run through its packed weights
    prompt = list(tokenizer(_PROMPT)["input_ids"])
    embedding = torch.nn.Sequential(
        *(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS))
    ).requires_grad_(False)
    passage = torch.randn(_PASSAGE, _WIDTH)
    file = None if gguf is None else GGUFSource(LEADER, gguf, {}).load(None, None)[0]
    with ExitStack() as open_decoders:

        def written_by(model: Any, count: int, *, guesses: bool = True) -> Callable[[], object]:
            decoder = FoReaLDecoder(
                model,
                model,
                tokenizer,
                max_batch_size=1,
                max_context=len(prompt) + tokens,
                threads=count,
                prefix_cache=False,
            )
            open_decoders.enter_context(decoder)
            return partial(
                decoder.generate,
                prompt,
                policy="leader",
                max_new_tokens=tokens,
                min_tokens=tokens,
                speculate=guesses,
            )

        ways: dict[tuple[str, int], Callable[[], object]] = {}
        for count in threads:
            write = written_by(ours, count)
            ways["engine", count] = write
            ways["engine, no guesses", count] = written_by(ours, count, guesses=False)
            ways["engine, user computes", count] = partial(_after, embedding, passage, write)
            ways["generate", count] = partial(_generate, theirs, prompt, tokens)
            if gguf is not None:
                ways["engine, GGUF", count] = written_by(file, count)
                ways["llama.cpp", count] = partial(_llama, _opened(gguf, count), prompt, tokens)
        taken: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
        for repeat in range(repeats + 1):
            for way, run in ways.items():
                torch.set_num_threads(way[1])
                seconds, _ = clocked(run)
                give_back_threads()  # one way's pool must not slow the next one
                if repeat:  # the first warms up
                    taken[way].append(tokens / seconds)
    speed = {way: median(each) for way, each in taken.items()}
    first = threads[0]
    peers = ("generate", *(["llama.cpp"] if gguf else []))
    return {
        "kind": "threads",
        "model": name,
        "gguf": gguf,
        "dtype": dtype,
        "tokens": tokens,
        "repeats": repeats,
        "tokens_per_second": {
            f"{way}, {count} threads": {"median": speed[way, count], "all": taken[way, count]}
            for way, count in ways
        },
        "ratios": {
            **{
                f"{way} / {peer}, {count} threads": speed[way, count] / speed[peer, count]
                for way, count in ways
                for peer in peers
                if way not in peers
            },
            **{
                f"{way}, {count} threads / {first}": speed[way, count] / speed[way, first]
                for way, count in ways
                if count != first
            },
        },
        "machine": provenance.machine(),
        "versions": provenance.versions(),
    }


def _after(embedding: Any, passage: Any, write: Callable[[], object]) -> None:
    embedding(passage)
    write()


@torch.inference_mode()
def _generate(model: Any, prompt: Sequence[int], tokens: int) -> None:
    ids = torch.tensor([prompt])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
    )


def _opened(gguf: str, threads: int) -> Any:
    library = extra_module("llama_cpp", "llama-cpp", "gguf")
    return library.Llama(
        gguf, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False
    )


def _llama(model: Any, prompt: Sequence[int], tokens: int) -> None:
    model.reset()  # else it would go on with the prompt that it has read
    ids = prompt
    for _ in range(tokens):
        model.eval(ids)
        ids = [model.sample(temp=0.0)]


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16, float32, ...")
    parser.add_argument("--gguf", help="a GGUF file of the same weights and precision")
    parser.add_argument("--threads", type=int, action="append", help="repeat it for several")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    record = measure_threads(
        arguments.model,
        dtype=arguments.dtype,
        threads=arguments.threads or [1, 2],
        tokens=arguments.tokens,
        repeats=arguments.repeats,
        gguf=arguments.gguf,
    )
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
