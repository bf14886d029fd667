"""Two inference servers as a `Backend`: spans, what is tried again, and what is checked.

Writing is pure: a span that failed is asked for again from the last id that came, so nothing is
lost and nothing is written twice, whatever became of the server in between.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from foreal_core.backends.base import Capabilities, Score, SpanToken, Until
from foreal_core.backends.servers.client import ServerClient
from foreal_core.backends.servers.dialects import Ask, Facts, Fault, Misfit, Piece
from foreal_core.backends.servers.facts import dialect_of, facts_of
from foreal_core.backends.servers.options import ServerOptions
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile, Usage
from foreal_core.errors import ConfigError, ServerError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.randomness import splitmix64
from foreal_core.text.pair_tokenizer import PairTokenizer

_FIRST_WAIT, _LONGEST_WAIT, _LONGEST_ASKED_WAIT = 0.25, 8.0, 60.0
_GREEDY = FoReaLConfig()


class Server:
    """One of the two.

    Args:
        author: whose model it has.
        options: where it is.
        facts: what it said of itself.
    """

    def __init__(self, author: Author, options: ServerOptions, facts: Facts) -> None:
        self.author = author
        self.facts = facts
        self.dialect = dialect_of(facts)
        self.banned: set[int] = set()  # ids that it wrote and may not
        self.retries = options.retries
        self._url = options.url
        connections = options.max_connections or facts.slots
        self.client = ServerClient(options, connections)

    def error(self, said: object, *, lost: bool = False) -> ServerError:
        """An error that names the server."""
        text = str(said).rstrip(".")
        return ServerError(f"the {self.author}'s server {self._url} {text}.", self.author, lost)

    async def wait(self, fault: Fault, attempt: int) -> None:
        """Waits before the next try, and makes sure that it is the same server.

        Raises:
            ServerError: this was the last try, or another model answers there by now.
        """
        if attempt > self.retries:
            raise self.error(
                f"failed {attempt} times in a row: {fault}. Is it up? Raise retries= to wait "
                "longer, or see on_server_lost=",
                lost=True,
            ) from fault
        if fault.after is not None:
            await asyncio.sleep(min(fault.after, _LONGEST_ASKED_WAIT))
        elif attempt > 1 or not fault.gone:  # an idle connection may just have been closed
            longest = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT)
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))
        if fault.gone:
            try:
                facts = await facts_of(self.client)
            except Fault:
                return  # the next try will tell
            except Misfit as error:
                raise self.error(error) from error
            if facts != self.facts:
                raise self.error(
                    f"came back as another: it was {self.facts} and is {facts}. Connect again"
                )


class ServersBackend:
    """Spans over two servers; see `Backend`.

    Args:
        servers: by author.
        tokenizer: the pair's.
        rows: ids that each model knows.
        profiles: what each model's work costs.
        max_context: prompt and completion together, in tokens, at most.
    """

    def __init__(
        self,
        servers: Mapping[Author, Server],
        tokenizer: PairTokenizer,
        rows: Mapping[Author, int],
        profiles: Mapping[Author, ModelProfile],
        max_context: int,
    ) -> None:
        self._servers = dict(servers)
        self._tokenizer = tokenizer
        self._rows = dict(rows)
        self.profiles = dict(profiles)
        self.max_context = max_context
        self._forbidden = {
            LEADER: frozenset(tokenizer.leader_forbidden),
            DRAFT: frozenset(tokenizer.draft_forbidden),
        }
        scores = hasattr(servers[DRAFT].dialect, "score_body")
        # Whether a server repeats itself hangs on its number type and kernels.
        self.capabilities = Capabilities(scores=scores, deterministic=False)

    def check(self, config: FoReaLConfig) -> None:
        """Refuses settings that a server has no field for.

        Raises:
            ConfigError: it names the setting.
        """
        for server in self._servers.values():
            if (name := server.dialect.refused(config)) is not None:
                raise ConfigError(
                    f"{name}={getattr(config, name)!r} is not allowed: the {server.author}'s "
                    f"server ({server.facts.dialect}) has no field for it that holds across spans."
                )

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
        server = self._servers[author]
        read = list(self._tokenizer.to_draft(ids) if author == DRAFT else ids)
        left, attempt = until.tokens, 0
        stops = self._stop_ids(author, until)
        while left > 0:
            most = left if server.dialect.most is None else min(left, server.dialect.most)
            ask = Ask(
                model=server.facts.model,
                ids=read,
                tokens=most,
                stop_ids=stops,
                config=config,
                seed=splitmix64(seed ^ splitmix64(len(read))) >> 33,
                banned=tuple(server.banned),
            )
            usage.retries += attempt > 0
            try:
                async with aclosing(self._pieces(server, ask, usage)) as pieces:
                    async for piece in pieces:
                        tokens = self._tokens(server, piece)
                        read += piece.ids[: len(tokens)]
                        left -= len(tokens)
                        if tokens:
                            attempt = 0
                            yield tokens
                        if len(tokens) < len(piece.ids):
                            break  # a forbidden one: the rest is asked for without it
                        if tokens and tokens[-1].token_id in until.stop_ids:
                            return
            except Fault as fault:
                attempt += 1
                await server.wait(fault, attempt)
            except Misfit as error:
                raise server.error(error) from error

    async def score(
        self, author: Author, ids: Sequence[int], start: int, usage: Usage
    ) -> list[Score]:
        server, attempt = self._servers[author], 0
        dialect: Any = server.dialect
        read = list(self._tokenizer.to_draft(ids) if author == DRAFT else ids)
        ask = Ask(server.facts.model, read, 1, (), _GREEDY, 0)
        while True:
            usage.retries += attempt > 0
            usage.requests += 1
            usage.prompt_tokens += len(read)
            begun = time.perf_counter()
            try:
                answer = await server.client.post(dialect.path, dialect.score_body(ask, start))
                rows = dialect.scores(answer, len(ids) - start)
                return [Score(self._meant(author, one), own, best) for one, own, best in rows]
            except Fault as fault:
                attempt += 1
                await server.wait(fault, attempt)
            except Misfit as error:
                raise server.error(error) from error
            finally:
                usage.seconds += time.perf_counter() - begun

    async def aclose(self) -> None:
        for server in self._servers.values():
            await server.client.aclose()

    async def _pieces(self, server: Server, ask: Ask, usage: Usage) -> AsyncGenerator[Piece]:
        """One request's answer, checked for what got lost on the way."""
        usage.requests += 1
        usage.prompt_tokens += len(ask.ids)
        begun, have, over = time.perf_counter(), 0, False
        dialect, length = server.dialect, len(ask.ids)
        messages = server.client.messages(dialect.path, dialect.body(ask), streams=dialect.streams)
        try:
            async with aclosing(messages) as answer:
                async for message in answer:
                    piece = dialect.piece(message, ask, have)
                    if piece.cached is not None:
                        usage.cached_tokens += piece.cached
                        usage.counted_tokens += length
                    have += len(piece.ids)
                    if piece.written is not None and piece.written != have:
                        raise Fault(f"it wrote {piece.written} tokens and sent {have} of them")
                    if have > ask.tokens:
                        raise Misfit(f"wrote {have} tokens where {ask.tokens} were asked for")
                    usage.completion_tokens += len(piece.ids)
                    over = over or piece.over
                    yield piece
        finally:
            usage.seconds += time.perf_counter() - begun
        if not over:
            raise Fault("its answer was cut off")
        if not have:
            raise Misfit(f"wrote nothing behind {length} tokens, where {ask.tokens} were asked for")

    def _tokens(self, server: Server, piece: Piece) -> list[SpanToken]:
        """What came, in the leader's ids, up to the first id that may not be written."""
        author, tokens = server.author, []
        choices = piece.ids if piece.first_choices is None else piece.first_choices
        if len(choices) != len(piece.ids):
            raise Misfit(f"sent {len(choices)} log-probabilities for {len(piece.ids)} tokens")
        for written, choice in zip(piece.ids, choices, strict=True):
            if not 0 <= written < self._rows[author]:
                raise Misfit(
                    f"wrote id {written}, and its model has {self._rows[author]}: it serves "
                    "another model than the tokenizer's"
                )
            if written in self._forbidden[author]:
                if written in server.banned:
                    raise Misfit(f"wrote id {written}, which logit_bias forbids")
                server.banned.add(written)
                break
            tokens.append(SpanToken(self._meant(author, written), self._meant(author, choice)))
        return tokens

    def _meant(self, author: Author, token: int) -> int:
        return self._tokenizer.from_draft(token) if author == DRAFT else token

    def _stop_ids(self, author: Author, until: Until) -> frozenset[int]:
        """Stop ids as the author writes them."""
        if author == LEADER:
            return frozenset(until.stop_ids)
        aliases = self._tokenizer.draft_aliases
        meant = set(self._tokenizer.to_draft(list(until.stop_ids)))
        return frozenset(meant.union(*(aliases.get(one, ()) for one in until.stop_ids)))
