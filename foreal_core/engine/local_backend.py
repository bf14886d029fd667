"""The two models of an engine as a `Backend`: each span is a request of its own.

It is the plain way of writing what the engine writes by passes and proposals, and so what a backend
elsewhere can be compared with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from foreal_core.backends.base import Capabilities, Score, SpanToken, Until
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile, Usage
from foreal_core.engine.engine import Engine
from foreal_core.engine.streams import AsyncTokenStream
from foreal_core.errors import FoReaLError
from foreal_core.events import Author


class LocalBackend:
    """Spans over an engine's models; see `Backend`. The engine is not closed with it.

    Args:
        engine: the models'.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.capabilities = Capabilities(deterministic=engine.executor.deterministic)
        self.profiles: Mapping[Author, ModelProfile] = dict(engine.profiles)
        self.max_context = engine.max_context

    def check(self, config: FoReaLConfig) -> None:
        """All that a span can have is kept."""

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
        # No stop string and no mark holds a token back; the first choice comes with its chance.
        span = config.with_overrides(
            **{"policy": author, "seed": seed, "max_new_tokens": until.tokens},
            **{"stop": (), "sentence_boundary": "paper", "logprobs": True, "top_logprobs": 1},
        )
        stream = AsyncTokenStream(
            lambda push: self._engine.submit(ids, span, push, push, drawn_from=prompt_length)
        )
        async with stream:
            async for event in stream:
                assert event.logprobs is not None
                [(first_choice, _)] = event.logprobs.top
                yield [SpanToken(event.token_id, first_choice)]
                if event.token_id in until.stop_ids:
                    return

    async def score(
        self, author: Author, ids: Sequence[int], start: int, usage: Usage
    ) -> list[Score]:
        raise FoReaLError("this backend does not score: see its capabilities.")

    async def aclose(self) -> None:
        """Leaves the engine to its decoder."""
