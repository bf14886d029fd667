"""One call of a model, from its first token to its bill."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse

from foreal_core import (
    ConfigError,
    FoReaLConfig,
    FoReaLDecoder,
    FoReaLError,
    Generation,
    Prompt,
    TokenEvent,
)
from foreal_core.chat.outcomes import outcome
from foreal_core.chat.timeouts import events_in_time, in_time
from foreal_integrations.llama_index.costs import Account
from foreal_integrations.llama_index.messages import Delta, Reply

_logger = logging.getLogger(__name__)


class RequestRefusedError(FoReaLError, RuntimeError):
    """The models cannot take a prompt, its tools or its schema; the message says why.

    No ValueError, unlike the ConfigError that it comes from: LlamaIndex's synthesizers turn those
    into the answer "Empty Response".
    """


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turns a ConfigError of the block into a RequestRefusedError."""
    try:
        yield
    except ConfigError as error:
        raise RequestRefusedError(str(error)) from error


R = TypeVar("R", ChatResponse, CompletionResponse)
View: TypeAlias = Callable[[Reply, Delta | None, dict[str, Any] | None], R]


@dataclass
class Call:
    """A request and what comes of it; runs once.

    Attributes:
        model: the pair's name.
        decoder: writes.
        prompt: what it goes on from.
        settings: of this call.
        timeout: seconds until it is stopped; None waits for ever.
        account: pays, however the call ends.
        reply: what was written, as LlamaIndex's responses.
        generation: the same with its authors and its cost, at the end.
    """

    model: str
    decoder: FoReaLDecoder
    prompt: Prompt
    settings: FoReaLConfig
    timeout: float | None
    account: Account
    reply: Reply
    generation: Generation | None = None

    def deltas(self) -> Generator[Delta, None, None]:
        """What the reply grows by, until it is written.

        Raises:
            TimeoutError: it took too long.
            RequestRefusedError: the schema cannot be compiled.
            FoReaLError: the run failed.
        """
        with contextlib.closing(self._events()) as events:
            for event in events:
                yield from self.reply.feed(event.text, event.token_id)
        yield from self.reply.flush()

    async def adeltas(self) -> AsyncGenerator[Delta, None]:
        """`deltas` for an event loop; cancelling the task stops the work within one step."""
        async with contextlib.aclosing(self._aevents()) as events:
            async for event in events:
                for delta in self.reply.feed(event.text, event.token_id):
                    yield delta
        for delta in self.reply.flush():
            yield delta

    def raw(self) -> dict[str, Any]:
        """What is known at the end, JSON-safe: usage, finish reason, cost record."""
        generation = self.generation
        assert generation is not None, "the call has not ended"
        if generation.finish_reason == "length" and not (self.reply.text or self.reply.calls):
            _logger.warning(
                "the answer is empty: the thinking took all %d tokens; raise max_new_tokens (or "
                "max_context)",
                generation.cost.completion_tokens,
            )
        cost = generation.cost
        return {
            "model": self.model,
            "finish_reason": generation.finish_reason,
            "usage": {
                "prompt_tokens": cost.prompt_tokens,
                "completion_tokens": cost.completion_tokens,
                "total_tokens": cost.prompt_tokens + cost.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": cost.cached_prompt_tokens},
                "completion_tokens_details": {"reasoning_tokens": self.reply.thinking_tokens},
            },
            "foreal": cost.to_dict(),
            **outcome(generation, self.decoder),
        }

    def _events(self) -> Generator[TokenEvent, None, None]:
        with self.account.counting_failures(), refusing():
            stream = self.decoder.stream(self.prompt, self.settings, on_done=self.account.settle)
            with in_time([stream], self.timeout):
                yield from stream
        self.generation = stream.result

    async def _aevents(self) -> AsyncGenerator[TokenEvent, None]:
        with self.account.counting_failures(), refusing():
            stream = self.decoder.astream(self.prompt, self.settings, on_done=self.account.settle)
            try:
                async with contextlib.aclosing(events_in_time(stream, self.timeout)) as events:
                    async for event in events:
                        yield event
            except GeneratorExit:
                # The loop may be closing all generators at once: nothing more may be awaited here.
                stream.cancel()
                raise
            except BaseException:
                await stream.aclose()
                raise
        self.generation = stream.result


# -- a call in the ways in which LlamaIndex wants it --------------------------------------------


def whole(call: Call, view: View[R]) -> R:
    """The response to the whole text."""
    for _ in call.deltas():
        pass
    return view(call.reply, None, call.raw())


async def awhole(call: Call, view: View[R]) -> R:
    """`whole` for an event loop."""
    async for _ in call.adeltas():
        pass
    return view(call.reply, None, call.raw())


def streamed(call: Call, view: View[R]) -> Generator[R, None, None]:
    """A response for every delta, and one at the end that says what it cost."""
    with contextlib.closing(call.deltas()) as deltas:
        for delta in deltas:
            yield view(call.reply, delta, None)
    yield view(call.reply, Delta(), call.raw())


async def astreamed(call: Call, view: View[R]) -> AsyncGenerator[R, None]:
    """`streamed` for an event loop."""
    async with contextlib.aclosing(call.adeltas()) as deltas:
        async for delta in deltas:
            yield view(call.reply, delta, None)
    yield view(call.reply, Delta(), call.raw())
