"""Two inference servers under many requests at once, through `FoReaLDecoder.connect` and driven
directly with the same spans, in turn: `python -m foreal_core.benchmark.servers`.

Directly: a plain client sends the requests for spans that the text took, each once those are over
that were over when it was sent, and reads as many tokens as were read. So what differs is the work
of this package. Beside it what the text would take without any hit test: each author's stretches
alone, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from foreal_core.backends.base import SpanToken, Until
from foreal_core.backends.servers.backend import ServersBackend
from foreal_core.backends.servers.dialects import Ask
from foreal_core.config import FoReaLConfig
from foreal_core.cost import Usage
from foreal_core.decoder import FoReaLDecoder
from foreal_core.errors import FoReaLError
from foreal_core.evaluation.suites import load_suite
from foreal_core.events import DRAFT, LEADER, Author, Generation
from foreal_core.extras import extra_module
from foreal_core.randomness import problem_seed
from foreal_core.records import provenance
from foreal_core.records.files import write_record

_SEED = 24
_TRIES = 3


@dataclass
class _Span:
    """A request for a span, and what came of it.

    Attributes:
        taken: tokens that were read before it was closed or over.
        begun, ended: seconds.
    """

    author: Author
    ids: Sequence[int]
    until: Until
    taken: int = 0
    begun: float = 0.0
    ended: float = 0.0


class _Watched:
    """A backend whose requests are kept, by prompt."""

    def __init__(self, backend: ServersBackend) -> None:
        self._backend = backend
        self.spans: dict[tuple[int, ...], list[_Span]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def write(
        self,
        author: Author,
        ids: Sequence[int],
        until: Until,
        config: FoReaLConfig,
        seed: int,
        prompt_length: int,
        usage: Usage,
    ) -> AsyncIterator[Sequence[SpanToken]]:
        span = _Span(author, tuple(ids), until, begun=time.perf_counter())
        self.spans[tuple(ids[:prompt_length])].append(span)
        written = self._backend.write(author, ids, until, config, seed, prompt_length, usage)
        try:
            async with aclosing(written) as tokens:  # type: ignore[type-var]
                async for batch in tokens:
                    span.taken += len(batch)
                    yield batch
        finally:
            span.ended = time.perf_counter()


class _Direct:
    """A plain client of the two servers.

    Args:
        backend: whose servers they are.
        config: of the texts.
    """

    def __init__(self, backend: ServersBackend, config: FoReaLConfig) -> None:
        self._httpx: Any = extra_module("httpx", "servers", "this benchmark")
        self._servers = backend._servers
        self._config = config

    def seconds(self, requests: Sequence[Sequence[_Span]]) -> float:
        """How long all take, side by side."""
        return asyncio.run(self._all(requests))

    async def _all(self, requests: Sequence[Sequence[_Span]]) -> float:
        # Servers close idle connections after 5 s.
        limits = self._httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0
        )
        async with self._httpx.AsyncClient(timeout=None, limits=limits) as http:
            begun = time.perf_counter()
            await asyncio.gather(*(self._request(http, spans) for spans in requests))
            return time.perf_counter() - begun

    async def _request(self, http: Any, spans: Sequence[_Span]) -> None:
        tasks: list[asyncio.Task[None]] = []

        async def after(span: _Span, others: Sequence[asyncio.Task[None]]) -> None:
            if others:
                await asyncio.wait(others)
            await self._span(http, span)

        for span in spans:
            before = [n for n, one in enumerate(spans[: len(tasks)]) if one.ended <= span.begun]
            tasks.append(asyncio.create_task(after(span, [tasks[n] for n in before])))
        await asyncio.gather(*tasks)

    async def _span(self, http: Any, span: _Span) -> None:
        server = self._servers[span.author]
        dialect, url = server.dialect, server.client.options.url + server.dialect.path
        ids, left = list(span.ids), span.taken
        failures = 0
        while left > 0:
            most = min(span.until.tokens, dialect.most or span.until.tokens)
            ask = Ask(server.facts.model, ids, most, span.until.stop_ids, self._config, 0)
            have = 0
            try:
                async with http.stream("POST", url, json=dialect.body(ask)) as answer:
                    async for line in answer.aiter_lines():
                        data = line.removeprefix("data:").strip()
                        if data and data != "[DONE]":
                            piece = dialect.piece(json.loads(data), ask, have)
                            have += len(piece.ids)
                            ids += piece.ids
                            # One that this package read to its end is read to its end.
                            if have >= left and left < most:
                                break
            except self._httpx.TransportError:
                failures += 1
                if failures > _TRIES:
                    raise
            else:
                have = max(have, 1)
            left -= have


def measure_servers(
    decoder: FoReaLDecoder, *, requests: int, tokens: int, rounds: int, suite: str
) -> dict[str, Any]:
    """The record of `requests` texts of up to `tokens` tokens at once, JSON-safe. The first round
    finds the servers' caches empty and is not timed; the `rounds` behind it are."""
    engine: Any = decoder._engine
    inner = engine.backend
    config = FoReaLConfig(
        lead_probability=0.6, lead_count=15, hit_threshold=5, max_new_tokens=tokens
    )
    tasks = load_suite(suite, count=requests, seed=_SEED).tasks
    prompts = [decoder.encode(messages=task.messages) for task in tasks]
    direct = _Direct(inner, config)

    def through() -> tuple[list[Generation], float, list[list[_Span]]]:
        engine.backend = watched = _Watched(inner)
        begun = time.perf_counter()
        futures = [
            decoder.submit(prompt, config, seed=problem_seed(_SEED, number))
            for number, prompt in enumerate(prompts)
        ]
        texts = [future.result() for future in futures]
        seconds = time.perf_counter() - begun
        decoder.check_integrity()
        return texts, seconds, list(watched.spans.values())

    cold, _, _ = through()
    timed: list[dict[str, Any]] = []
    for _ in range(rounds):
        texts, seconds, spans = through()
        directly = direct.seconds(spans)
        stretches = direct.seconds(_stretches(texts, prompts))
        timed.append(
            {
                **_counts(texts),
                "tokens_per_second": _speed(texts, seconds),
                "direct_tokens_per_second": _speed(texts, directly),
                "stretches_alone_tokens_per_second": _speed(texts, stretches),
                "of_direct": directly / seconds,
                "same_texts": [one.token_ids for one in texts] == [one.token_ids for one in cold],
            }
        )
    return {
        "kind": "servers",
        "models": provenance.models(decoder.models),
        "dialects": {author: inner._servers[author].facts.dialect for author in (LEADER, DRAFT)},
        "settings": config.to_dict(),
        "requests": len(prompts),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "cold": _counts(cold),
        "rounds": timed,
        "of_direct": median(one["of_direct"] for one in timed),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
    }


def _speed(texts: Sequence[Generation], seconds: float) -> float:
    return sum(len(one.token_ids) for one in texts) / seconds


def _counts(texts: Sequence[Generation]) -> dict[str, Any]:
    """What the servers say, added up."""
    sentences = sum(len(one.sentences) for one in texts)
    sums: dict[str, float] = defaultdict(float)
    for text in texts:
        for counts in text.cost.servers.values():
            for name, count in counts.items():
                sums[name] += count or 0
    counted = sums["counted_tokens"]
    return {
        "tokens": sum(len(one.token_ids) for one in texts),
        "sentences": sentences,
        "requests_per_sentence": sums["requests"] / sentences,
        "cached_share": sums["cached_tokens"] / counted if counted else None,
        **sums,
    }


def _stretches(texts: Sequence[Generation], prompts: Sequence[Sequence[int]]) -> list[list[_Span]]:
    """Each author's stretches, one after the other."""
    found = []
    for text, prompt in zip(texts, prompts, strict=True):
        spans: list[_Span] = []
        place = 0
        for author, same in groupby(text.authors):
            length = len(list(same))
            ids = [*prompt, *text.token_ids[:place]]
            begun = float(len(spans))
            spans.append(_Span(author, ids, Until(length, frozenset()), length, begun, begun + 1))
            place += length
        found.append(spans)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leader", required=True, help="an address")
    parser.add_argument("--draft", required=True, help="an address")
    parser.add_argument("--tokenizer", help="a folder or hub id")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--suite", default="ordering")
    parser.add_argument("--out", required=True, help="the record's file")
    asked = parser.parse_args(arguments)
    try:
        with FoReaLDecoder.connect(
            asked.leader, asked.draft, tokenizer=asked.tokenizer, timeout=600.0
        ) as decoder:
            record: Mapping[str, Any] = measure_servers(
                decoder,
                requests=asked.requests,
                tokens=asked.tokens,
                rounds=asked.rounds,
                suite=asked.suite,
            )
    except FoReaLError as error:
        parser.error(str(error))
    write_record(Path(asked.out), record)
    print(json.dumps({name: record[name] for name in ("cold", "of_direct")}, indent=1))


if __name__ == "__main__":
    main()
