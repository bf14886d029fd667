"""What the integration costs and what its batching gives, as ratios within one process.

python -m foreal_integrations.langchain.benchmark --out records/langchain-2026-11-27.json

It stands here and not in `foreal_core.benchmark`, since the core knows no framework. The bundled
pair writes; what is compared runs in turn within each repeat, so that a change in the machine's
load meets all sides, and medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.benchmark.ratios import clocked, in_turn, on_the_bundled_pair, turned
from foreal_core.benchmark.subject import PROBLEM_SEED
from foreal_core.chat.messages import user_message
from foreal_core.cli.common import CommandConsole, print_parts
from foreal_core.cli.terminal import bench_view
from foreal_core.demo import problems
from foreal_core.records.files import write_record
from foreal_core.report.targets import Spread, target
from foreal_integrations.langchain import ChatFoReaL, FoReaLLLM, get_foreal_cost_callback

KIND = "foreal-langchain-benchmark"
REQUESTS = 16
SOLO_REQUESTS = 4
# No answer of the bundled pair is over before this many tokens where repetitions are penalised.
LONG_ANSWER: dict[str, Any] = {"max_new_tokens": 600, "repetition_penalty": 1.3}

_FILE_WIDTH = 140  # where there is no terminal to be narrow

Model: TypeAlias = FoReaLLLM | ChatFoReaL
Progress = Callable[[str], None]


def measure(
    *, repeats: int = 5, max_new_tokens: int = 128, progress: Progress = lambda what: None
) -> dict[str, Any]:
    """Takes every measurement of both classes; see `on_the_bundled_pair`."""
    record = on_the_bundled_pair(partial(_measured, progress), repeats, max_new_tokens)
    versions = {**record["versions"], "langchain-core": version("langchain-core")}
    return {"kind": KIND, **record, "versions": versions}


def _measured(
    progress: Progress, decoder: FoReaLDecoder, config: FoReaLConfig, repeats: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    questions = [problem.question for problem in problems("ledger", PROBLEM_SEED, REQUESTS)]
    measured: dict[str, Any] = {}
    targets: list[dict[str, Any]] = []
    for kind in (FoReaLLLM, ChatFoReaL):
        model = kind(decoder=decoder, max_new_tokens=config.max_new_tokens, seed=config.seed)
        name = kind.__name__
        say = partial(_say, progress, name)
        together = _together(model, questions, repeats, say)
        first = _first_chunk(model, questions[:SOLO_REQUESTS], repeats, say)
        overhead = _overhead(model, config, questions[:SOLO_REQUESTS], repeats, say)
        measured[name] = {"together": together, "first_chunk": first, "overhead": overhead}
        requests = f"{name}: seconds per token, {REQUESTS} invokes'"
        batch, gathered = (Spread.of(together[f"{way}_ratios"]) for way in ("batch", "ainvoke"))
        start, alone = (Spread.of(taken["ratios"]) for taken in (first, overhead))
        targets += [
            target(f"{requests} / batch's", batch, ">=", 4.0),
            target(f"{requests} / concurrent ainvokes'", gathered, ">=", 4.0),
            target(f"{name}: first chunk's seconds / all", start, "<=", 0.1),
            target(f"{name}: invoke's seconds / decoder's", alone, "<=", 1.05),
        ]
    return {"measured": measured}, targets


def _together(model: Model, questions: list[str], repeats: int, say: Progress) -> dict[str, Any]:
    """A chain's `batch` and concurrent `ainvoke`s against one `invoke` after the other, by the
    token: each request has a gate of its own, as users' have, and so texts of other lengths."""
    prompt: Runnable[dict[str, str], Any] = PromptTemplate.from_template("{question}")
    as_text: Runnable[Any, str] = StrOutputParser()
    chain = prompt | model | as_text
    drawn = prompt | model.model_copy(update={"seed": None}) | as_text
    inputs = [{"question": question} for question in questions]

    async def concurrently(chain: Runnable[Any, str]) -> list[str]:
        return await asyncio.gather(*(chain.ainvoke(one) for one in inputs))

    ways: dict[str, Callable[[Runnable[Any, str]], list[str]]] = {
        "invoke": lambda chain: [chain.invoke(one) for one in inputs],
        "batch": lambda chain: chain.batch(inputs),
        "ainvoke": lambda chain: asyncio.run(concurrently(chain)),
    }
    say("warming up, the same texts in every way")
    expected, *others = (way(chain) for way in ways.values())
    same_text = all(texts == expected for texts in others)
    taken: list[dict[str, float]] = []
    for repeat in range(repeats):
        say(f"{len(inputs)} requests, {repeat + 1} of {repeats}")
        seconds = {}
        for name in turned(list(ways), repeat):
            with get_foreal_cost_callback() as bill:
                spent, _ = clocked(partial(ways[name], drawn))
            seconds[name] = spent / bill.totals()["completion_tokens"]
        taken.append(seconds)
    return {
        "requests": len(inputs),
        "same_text": same_text,
        "seconds_per_token": taken,
        "batch_ratios": [seconds["invoke"] / seconds["batch"] for seconds in taken],
        "ainvoke_ratios": [seconds["invoke"] / seconds["ainvoke"] for seconds in taken],
    }


def _first_chunk(model: Model, questions: list[str], repeats: int, say: Progress) -> dict[str, Any]:
    """When the first text of a long answer comes, as a share of the whole stream."""
    taken = []
    for repeat in range(repeats):
        say(f"first chunk, {repeat + 1} of {repeats}")
        for question in questions:
            start = time.perf_counter()
            first, chunks = None, 0
            for chunk in model.stream(question, **LONG_ANSWER):
                chunks += 1
                if first is None and _has_text(chunk):
                    first = time.perf_counter() - start
            assert first is not None
            whole = time.perf_counter() - start
            taken.append({"first_seconds": first, "seconds": whole, "chunks": chunks})
    return {
        "settings": LONG_ANSWER,
        "streams": taken,
        "ratios": [each["first_seconds"] / each["seconds"] for each in taken],
    }


def _overhead(
    model: Model, config: FoReaLConfig, questions: list[str], repeats: int, say: Progress
) -> dict[str, Any]:
    """`invoke` against the decoder's own `generate` of the same request."""

    def direct(question: str) -> str:
        chat = user_message(question)
        return _bare(model.decoder.generate(messages=chat, config=config).text)

    def wrapped(question: str) -> str:
        return _bare(_written(model.invoke(question)))

    ways = {"invoke": wrapped, "generate": direct}
    taken, same_text = in_turn(ways, questions, repeats, lambda r: say(f"overhead, {r}"))
    return {
        "requests": len(questions),
        "same_text": same_text,
        "seconds": taken,
        "ratios": [each["invoke"] / each["generate"] for each in taken],
    }


def _say(progress: Progress, model: str, what: str) -> None:
    progress(f"{model}: {what}")


def _written(output: str | BaseMessage) -> str:
    if isinstance(output, str):
        return output
    return str(output.additional_kwargs.get("reasoning_content", "")) + str(output.content)


def _has_text(chunk: str | BaseMessage) -> bool:
    return bool(_written(chunk))


def _bare(text: str) -> str:
    """Without what only separates thinking and answer."""
    return "".join(text.replace("</think>", "").split())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the record, JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    given = parser.parse_args()
    record = measure(
        repeats=given.repeats,
        max_new_tokens=given.max_new_tokens,
        progress=partial(print, flush=True),
    )
    write_record(given.out, record)
    console = CommandConsole(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    print_parts(console, bench_view(record))


if __name__ == "__main__":
    main()
