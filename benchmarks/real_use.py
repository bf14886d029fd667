"""A real pair in the frameworks: an agent, a query engine over our own pages, structured answers.

    python benchmarks/real_use.py LEADER DRAFT [--dtype bfloat16] [--out FILE]

Every task is run under each of `RUNS`, so that what a run gets wrong can be told from what the
leader alone gets wrong too. The record has every message, what was right, and the bill. Needs the
extras `langchain`, `llama-index` and `json`, and llama-index-retrievers-bm25; no network.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from llama_index.core import Settings
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document, TextNode
from llama_index.retrievers.bm25 import BM25Retriever  # type: ignore[import-untyped]
from pydantic import BaseModel, Field

from foreal_core.records import provenance
from foreal_integrations.langchain import ChatFoReaL, get_foreal_cost_callback
from foreal_integrations.llama_index import FoReaLLLM

RUNS: dict[str, dict[str, Any]] = {
    "review": {"policy": "review"},
    "leader alone": {"policy": "leader"},
}
TURNS = 12  # steps of an agent before it is stopped
COUNTS = ("flops_written", "flops", "weight_bytes")

# -- an agent ------------------------------------------------------------------------------------


@tool
def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    return a * b


SUMS = {
    "What is 417 plus 2765? Use the tools.": "3182",
    "A shop sells 41 red and 27 blue pens, each for 3 dollars. How many dollars does it take in? "
    "Use the tools.": "204",
    "A hall has 23 rows of 18 seats, and 65 more seats in the gallery. How many seats are there? "
    "Use the tools.": "479",
    "What is the capital of France?": "Paris",
}
# Small models go on calling where nothing says when to answer.
PROMPTS = {
    "agent": None,
    "agent, told when to answer": "You are a helpful assistant. Call a tool where you need one. "
    "Once the results of the tools answer the question, give the answer in one sentence and call "
    "nothing more.",
}


def agent(chat: ChatFoReaL, question: str, expected: str, *, system: str | None) -> dict[str, Any]:
    """Asks an agent with two tools; right where its last message says so."""
    answers = create_agent(chat, tools=[add, multiply], system_prompt=system).invoke(
        {"messages": [("user", question)]}, {"recursion_limit": TURNS}
    )["messages"]
    last = answers[-1].text.replace(",", "")
    return {
        "right": re.search(rf"\b{expected}\b", last) is not None,
        "transcript": [message_of(one) for one in answers[1:]],
    }


def message_of(message: Any) -> dict[str, Any]:
    """The text of a message, its calls and those that cannot be read."""
    if isinstance(message, ToolMessage):
        return {"tool": message.name, "text": message.text}
    told: dict[str, Any] = {"text": message.text}
    if isinstance(message, AIMessage) and message.tool_calls:
        told["calls"] = [{"name": one["name"], "args": one["args"]} for one in message.tool_calls]
    if isinstance(message, AIMessage) and message.invalid_tool_calls:
        told["broken"] = [one["error"] for one in message.invalid_tool_calls]
    return told


# -- a query engine ------------------------------------------------------------------------------

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = (
    *("use", "frameworks", "cost", "models", "policies"),
    *("settings", "gguf", "serve", "servers", "speed"),
)
QUESTIONS = {
    "Which version of Python is needed?": r"3\.11",
    "Which environment variable holds the keys of foreal serve?": r"FOREAL_API_KEY",
    "Which version of vLLM is needed?": r"0\.10\.2",
    "Which argument turns the prefix cache off?": r"prefix_cache",
    "Which extra has to be installed to use models behind two inference servers?": r"\bservers\b",
    "At which tolerance is the policy review lossless speculative decoding?": r"(?<![\d.])1(?!\d)",
}


def retriever() -> BM25Retriever:
    """BM25 over pieces of the pages as they are, code and tables included."""
    pages = [
        Document(text=(DOCS / f"{name}.md").read_text(encoding="utf-8"), metadata={"page": name})
        for name in PAGES
    ]
    pieces = SentenceSplitter(chunk_size=256, chunk_overlap=32).get_nodes_from_documents(pages)
    nodes = [
        TextNode(text=one.get_content(), metadata=one.metadata, id_=str(number))
        for number, one in enumerate(pieces)
    ]
    return BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=2)


def query(engine: RetrieverQueryEngine, question: str, expected: str) -> dict[str, Any]:
    """Asks a query engine; `found` says whether a piece that it was shown holds the answer."""
    response = engine.query(question)
    shown = [node.node.get_content() for node in response.source_nodes]
    return {
        "right": re.search(expected, str(response)) is not None,
        "found": any(re.search(expected, text) for text in shown),
        "pages": [node.node.metadata["page"] for node in response.source_nodes],
        "transcript": [{"text": str(response)}],
    }


# -- structured answers --------------------------------------------------------------------------


class Order(BaseModel):
    """An order that somebody places."""

    item: str = Field(description="what is ordered, one word, singular")
    count: int = Field(description="how many pieces")
    cents: int = Field(description="the price of one piece in cents")
    delivery: Literal["pick up", "post", "courier"]


METHODS = ("function_calling", "json_schema")
ORDERS = {
    "Please send me 3 lamps at 12.50 dollars each by post.": ("lamp", 3, 1250, "post"),
    "I'd like a dozen mugs, 4 dollars apiece, I'll come by and pick them up.": (
        *("mug", 12, 400),
        "pick up",
    ),
    "Two chairs for 89 dollars each; a courier is to bring them.": ("chair", 2, 8900, "courier"),
}
SHAPE = "Give the order as JSON with item, count, cents and delivery: "


def structured(chat: ChatFoReaL, question: str, expected: Any, *, method: Any) -> dict[str, Any]:
    """Asks for an instance of a class; `valid` whether it is one, `right` whether all is right."""
    asked = SHAPE + question if method == "json_schema" else question
    reader = chat.with_structured_output(Order, method=method, include_raw=True)
    outcome = reader.invoke(asked)
    parsed = outcome["parsed"]
    values = parsed and (parsed.item, parsed.count, parsed.cents, parsed.delivery)
    told = parsed.model_dump() if parsed else outcome["raw"].text
    return {
        "right": values == expected,
        "valid": parsed is not None,
        "transcript": [{"text": json.dumps(told)}],
    }


# -- all of it -----------------------------------------------------------------------------------


KINDS = (*PROMPTS, *METHODS, "query engine")


def tasks(loading: dict[str, Any]) -> Iterator[tuple[str, str, Any, Callable[..., Any], Any]]:
    """Kind, question, expected answer, what asks, and what it asks."""
    chat = ChatFoReaL(**loading)
    for kind, system in PROMPTS.items():
        for question, expected in SUMS.items():
            yield kind, question, expected, partial(agent, system=system), chat
    for method in METHODS:
        for question, order in ORDERS.items():
            yield method, question, order, partial(structured, method=method), chat
    Settings.llm = FoReaLLLM(**loading)
    Settings.tokenizer = Settings.llm.get_token_ids
    engine = RetrieverQueryEngine.from_args(retriever(), response_mode="compact")
    for question, expected in QUESTIONS.items():
        yield "query engine", question, expected, query, engine


def bill_of(totals: dict[str, Any]) -> dict[str, Any]:
    """Calls, tokens, and each count with what the leader alone would have spent on the text."""
    counts = ("calls", "prompt_tokens", "completion_tokens", "leader_tokens")
    return {name: totals[name] for name in counts} | {
        name: {key: totals[name][key] for key in ("total", "leader_only")} for name in COUNTS
    }


def run(loading: dict[str, Any], policy: str, kinds: list[str]) -> Iterator[dict[str, Any]]:
    """The tasks of these kinds under one policy; what goes wrong in one ends that one alone."""
    for kind, question, expected, ask, asked in tasks(loading):
        if kind not in kinds:
            continue
        told = {"kind": kind, "question": question, "expected": expected}
        bill = Settings.llm.track_costs if kind == "query engine" else get_foreal_cost_callback
        with bill() as spent:
            try:
                told |= ask(asked, question, expected)
            except Exception as error:
                told |= {"right": False, "error": f"{type(error).__name__}: {error}"[:300]}
        print(policy, kind, told["right"], question, told.get("error", ""), flush=True)
        yield told | {"bill": bill_of(spent.totals())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("leader", help="a hub id or folder")
    parser.add_argument("draft")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--again", nargs="+", choices=KINDS, help="only these; of the others --out is kept"
    )
    asked = parser.parse_args()
    settings = {"max_new_tokens": asked.max_new_tokens, "seed": 1, "temperature": 0.0}
    loading = {
        **{"leader": asked.leader, "draft": asked.draft, "dtype": asked.dtype},
        **{"threads": asked.threads, **settings},
    }
    kinds = asked.again or list(KINDS)
    kept = json.loads(asked.out.read_text(encoding="utf-8"))["runs"] if asked.again else {}
    record: dict[str, Any] = {
        "kind": "real use",
        "models": {name: Path(loading[name]).name for name in ("leader", "draft")},
        "dtype": asked.dtype,
        "settings": settings,
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "runs": {},
    }
    runs: dict[str, list[dict[str, Any]]] = record["runs"]
    for name in RUNS:
        runs[name] = [one for one in kept.get(name, ()) if one["kind"] not in kinds]
    for name, policy in RUNS.items():
        for told in run({**loading, **policy}, name, kinds):
            runs[name].append(told)
            runs[name].sort(key=lambda one: KINDS.index(one["kind"]))
            asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
