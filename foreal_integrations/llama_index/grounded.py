"""The bundled pair in query engines: `python -m foreal_integrations.llama_index.grounded`.

Questions over corpora of stock lists go through BM25 retrieval and a compact query engine, with
leader alone, draft alone and FoReaL; the record holds accuracy and the bill of each, in three
counts against the leader's own. Beside it stand two clocks: `tree_summarize` with its calls
together and one after another, and how long concurrent calls keep an event loop from turning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import count as counting, islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from llama_index.core import PromptHelper
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import TextNode

from foreal_core import FoReaLDecoder
from foreal_core.chat.ledger import CostLedger, Record
from foreal_core.demo.grounded import Inquiry, StockList, ask, corpus
from foreal_core.demo.problems import Problem
from foreal_core.demo.puzzles import is_held_out
from foreal_core.evaluation import wilson_interval
from foreal_core.records import provenance
from foreal_integrations.llama_index.llms import FoReaLLLM

try:
    from llama_index.retrievers.bm25 import BM25Retriever  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        "this needs retrieval: pip install llama-index-retrievers-bm25 (part of "
        "foreal-decoding[dev])"
    ) from error

SEED = 2026
# The first run is what the others are measured against.
RUNS: dict[str, dict[str, Any]] = {
    "leader alone": {"policy": "leader"},
    "draft alone": {"policy": "draft"},
    "FoReaL n=15 p=1.0": {"lead_count": 15, "lead_probability": 1.0},
    "FoReaL n=15 p=0.8": {"lead_count": 15, "lead_probability": 0.8},
    "FoReaL n=5 p=0.8": {"lead_count": 5, "lead_probability": 0.8},
    "FoReaL n=15 p=0.6": {"lead_count": 15, "lead_probability": 0.6},
    "even gate n=15 p=0.6": {"policy": "even", "lead_probability": 0.6},
    "even gate n=15 p=0.5": {"policy": "even", "lead_probability": 0.5},
}
TREES = ("leader alone", "FoReaL n=15 p=1.0", "FoReaL n=15 p=0.6")
LISTS = 12  # of each corpus
QUESTIONS = 5  # about each corpus
TOP_K = 3
_TRIES = 200  # questions that are drawn about a corpus; one in sixteen is held out
CHUNKS = 16
LISTS_PER_CHUNK = 8
GATHERED = 4
COUNTS = {
    "flops_written": "written FLOPs",
    "flops": "computed FLOPs",
    "weight_bytes": "weight bytes",
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A question and where its answer is to be looked for."""

    inquiry: Inquiry
    retriever: BaseRetriever


def cases(count: int) -> list[Case]:
    """Draws corpora and questions whose prompts training never saw; the same count gives the same
    ones."""

    def draw() -> Iterator[Case]:
        for number in counting():
            rng = Random(f"llama_index/{SEED}/{number}")
            lists = corpus(rng, LISTS, held_out=True)
            retriever = BM25Retriever(nodes=nodes_of(lists), similarity_top_k=TOP_K)
            asked: set[str] = set()
            for _ in range(_TRIES):
                inquiry = ask(rng, lists)
                if inquiry.query not in asked and is_held_out(_seen(inquiry, retriever)):
                    asked.add(inquiry.query)
                    yield Case(inquiry, retriever)
                if len(asked) == QUESTIONS:
                    break

    return list(islice(draw(), count))


def _seen(inquiry: Inquiry, retriever: BaseRetriever) -> str:
    """The user message that the models will see: the question over what is retrieved."""
    by_box = {one.box: one for one in inquiry.lists}
    found = [by_box[node.node_id] for node in retriever.retrieve(inquiry.query)]
    return replace(inquiry, lists=tuple(found)).question


def _model(decoder: FoReaLDecoder, seed: int | None, settings: Mapping[str, Any]) -> FoReaLLLM:
    return FoReaLLLM(**{"decoder": decoder, "seed": seed, **settings})


def nodes_of(lists: Sequence[StockList]) -> list[TextNode]:
    """One node per list."""
    return [TextNode(text=one.text, id_=one.box) for one in lists]


def answered(decoder: FoReaLDecoder, asked: Sequence[Case], **settings: Any) -> dict[str, Any]:
    """Asks one question after another, as a user does, and grades the answers.

    Args:
        decoder: the pair.
        asked: at least one.
        **settings: of `FoReaLLLM`.
    """
    total = CostLedger()
    answers = []
    start = time.perf_counter()
    for index, case in enumerate(asked):
        llm = _model(decoder, SEED + index, settings)
        engine = RetrieverQueryEngine.from_args(
            case.retriever, llm=llm, response_mode=ResponseMode.COMPACT
        )
        with llm.track_costs() as bill:
            response = engine.query(case.inquiry.query)
        for record in bill.records:
            total.charge(record)
        found = {node.node.node_id for node in response.source_nodes}
        answers.append(
            {
                "query": case.inquiry.query,
                "expected": case.inquiry.answer,
                "answer": str(response),
                "correct": is_correct(case.inquiry, str(response)),
                "retrieved": found.issuperset(case.inquiry.boxes),
                "tokens": bill.totals()["completion_tokens"],
            }
        )
    right = sum(answer["correct"] for answer in answers)
    return {
        "settings": settings,
        "accuracy": right / len(answers),
        "interval": wilson_interval(right, len(answers)),
        "retrieved": sum(answer["retrieved"] for answer in answers) / len(answers),
        "bill": total.totals(),
        "seconds": time.perf_counter() - start,
        "answers": answers,
    }


def is_correct(inquiry: Inquiry, text: str) -> bool:
    """Grades a response as the pair's own evidence does."""
    return Problem(inquiry.question, inquiry.messages, inquiry.answer, "grounded").is_correct(text)


def against(run: Mapping[str, Any], leader: Mapping[str, Any]) -> dict[str, float]:
    """A run's three counts over those of the leader's own answers."""
    return {count: run["bill"][count]["total"] / leader["bill"][count]["total"] for count in COUNTS}


@dataclass(frozen=True)
class Summary:
    """What a tree's calls came to: seconds, the last text, the cost record of each call."""

    seconds: float
    text: str
    records: list[Record]

    @property
    def token_seconds(self) -> float:
        """Seconds per token written."""
        tokens: int = sum(record["completion_tokens"] for record in self.records)
        return self.seconds / tokens


class Tree:
    """`tree_summarize` over `CHUNKS` chunks, and then over what it made of them.

    Args:
        llm: writes.
    """

    def __init__(self, llm: FoReaLLLM) -> None:
        rng = Random(f"llama_index/{SEED}/tree")
        corpora = [corpus(rng, LISTS_PER_CHUNK, held_out=True) for _ in range(CHUNKS)]
        self._llm = llm
        self._documents = ["\n\n".join(one.text for one in lists) for lists in corpora]
        self._query = ask(rng, corpora[0]).query
        self._helper = PromptHelper(
            context_window=llm.metadata.context_window,
            num_output=llm.metadata.num_output,
            chunk_overlap_ratio=0.0,
            # So that a document, and not all of them, is a chunk; with a little room for the cuts.
            chunk_size_limit=len(llm.get_token_ids("\n\n".join(self._documents))) // CHUNKS + 4,
            tokenizer=llm.get_token_ids,
        )

    def summarize(self, *, use_async: bool) -> Summary:
        """The calls for the chunks together, or one by one."""
        synthesizer = get_response_synthesizer(
            llm=self._llm,
            response_mode=ResponseMode.TREE_SUMMARIZE,
            use_async=use_async,
            prompt_helper=self._helper,
        )
        start = time.perf_counter()
        with self._llm.track_costs() as bill:
            text = str(synthesizer.get_response(self._query, self._documents))
        return Summary(time.perf_counter() - start, text, bill.records)


def measured_tree(decoder: FoReaLDecoder, repeats: int, **settings: Any) -> dict[str, Any]:
    """A tree's calls together and one by one, in turn, by the token: each call has a gate of its
    own, as users' have, and so texts of other lengths. Before that one round under one seed, which
    does not count and shows that the texts are the same either way."""
    told = Tree(_model(decoder, SEED, settings))
    together, one_by_one = (told.summarize(use_async=use_async) for use_async in (True, False))
    tree = Tree(_model(decoder, None, settings))
    taken = []
    for repeat in range(repeats):
        order = (True, False) if repeat % 2 else (False, True)
        done = {use_async: tree.summarize(use_async=use_async) for use_async in order}
        taken.append(
            {"together": done[True].token_seconds, "one_by_one": done[False].token_seconds}
        )
    ratios = [each["one_by_one"] / each["together"] for each in taken]
    return {
        "chunks": CHUNKS,
        "lists_per_chunk": LISTS_PER_CHUNK,
        "calls": len(together.records),
        "same_text": together.text == one_by_one.text,
        "seconds_per_token": taken,
        "ratios": ratios,
        "median": median(ratios),
    }


def loop_gap(decoder: FoReaLDecoder, repeats: int, **settings: Any) -> dict[str, Any]:
    """The longest time (seconds) between two turns of an event loop, idle and while `GATHERED`
    calls of `achat` run; other processes lengthen both."""
    llm = _model(decoder, SEED, settings)
    questions = [
        [ChatMessage(**message) for message in case.inquiry.messages] for case in cases(GATHERED)
    ]

    async def longest(work: Callable[[], Any]) -> float:
        task = asyncio.ensure_future(work())
        gap, before = 0.0, time.perf_counter()
        while not task.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gap, before = max(gap, now - before), now
        await task
        return gap

    async def busy() -> None:
        await asyncio.gather(*(llm.achat(question) for question in questions))

    async def measure() -> list[dict[str, float]]:
        await busy()
        gaps = []
        for _ in range(repeats):
            start = time.perf_counter()
            gap = await longest(busy)
            seconds = time.perf_counter() - start
            idle = await longest(partial(asyncio.sleep, seconds))
            gaps.append({"idle": idle, "busy": gap})
        return gaps

    gaps = asyncio.run(measure())
    return {
        "gathered": GATHERED,
        "gaps": gaps,
        "median_idle": median(each["idle"] for each in gaps),
        "median_busy": median(each["busy"] for each in gaps),
    }


def measure(
    *,
    count: int = 100,
    repeats: int = 5,
    max_new_tokens: int = 512,
    progress: Progress = lambda what: None,
) -> dict[str, Any]:
    """Takes every measurement and returns the record, JSON-safe.

    Args:
        count: questions of each run; 0 takes the two clocks alone.
        repeats: of the two clocks.
        max_new_tokens: of an answer.
        progress: hears of every result.
    """
    record: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": provenance.machine(),
        "versions": {
            **provenance.versions(),
            **{name: version(name) for name in ("llama-index-core", "llama-index-retrievers-bm25")},
        },
        "seed": SEED,
        "lists": LISTS,
        "top_k": TOP_K,
        "max_new_tokens": max_new_tokens,
        "runs": {},
    }
    asked = cases(count)
    with FoReaLDecoder.demo() as decoder:
        record["models"] = provenance.models(decoder.models)
        runs = record["runs"]
        for name, settings in RUNS.items() if asked else ():
            run = answered(decoder, asked, max_new_tokens=max_new_tokens, **settings)
            runs[name] = run
            run["against_leader"] = against(run, next(iter(runs.values())))
            progress(_line(name, run))
        record["tree_summarize"] = {}
        for name in TREES:
            taken = measured_tree(decoder, repeats, max_new_tokens=max_new_tokens, **RUNS[name])
            record["tree_summarize"][name] = taken
            progress(f"{name:18}  tree_summarize, one by one / together: {taken['median']:.2f}")
        record["event_loop"] = loop_gap(decoder, repeats, max_new_tokens=max_new_tokens)
        progress(f"longest gap: {1000 * record['event_loop']['median_busy']:.0f} ms")
    return record


def _line(name: str, run: Mapping[str, Any]) -> str:
    low, high = run["interval"]
    tokens = run["bill"]["completion_tokens"]
    ratios = "  ".join(f"{COUNTS[n]} {ratio:.2f}" for n, ratio in run["against_leader"].items())
    return (
        f"{name:18}  {run['accuracy']:6.1%} [{low:.1%}, {high:.1%}]  "
        f"{tokens / run['bill']['calls']:5.0f} tokens, "
        f"{run['bill']['leader_tokens'] / tokens:4.0%} by the leader  "
        f"{ratios}  {run['seconds']:.0f} s"
    )


def main() -> None:
    """Prints a line per measurement and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="questions of each run (0: clocks)")
    parser.add_argument("--repeats", type=int, default=5, help="of the two clocks")
    parser.add_argument(
        "--threads", type=int, default=None, help="torch's threads (default: its own)"
    )
    parser.add_argument("--out", type=Path, default=None, help="where the JSON record goes")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    record = measure(
        count=arguments.count,
        repeats=arguments.repeats,
        progress=lambda what: print(what, flush=True),
    )
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
