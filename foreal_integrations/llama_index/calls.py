"""One call of a model, from its first token to its bill."""

from __future__ import annotations

import contextlib
import functools
import inspect
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
    _cancel: Callable[[], None] | None = None

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

    def stop(self) -> None:
        """Nobody reads on; does nothing to a text that has ended or never began."""
        if self._cancel is not None:
            self._cancel()

    def _events(self) -> Generator[TokenEvent, None, None]:
        with self.account.counting_failures(), refusing():
            stream = self.decoder.stream(self.prompt, self.settings, on_done=self.account.settle)
            self._cancel = stream.cancel
            with in_time([stream], self.timeout):
                yield from stream
        self.generation = stream.result

    async def _aevents(self) -> AsyncGenerator[TokenEvent, None]:
        with self.account.counting_failures(), refusing():
            stream = self.decoder.astream(self.prompt, self.settings, on_done=self.account.settle)
            self._cancel = stream.cancel
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


def streams(callback: Callable[[], Any], view: View[R]) -> Callable[[Callable[..., Any]], Any]:
    """A method that makes a call streams it, inside LlamaIndex's decorator for such methods.

    LlamaIndex's generator does not close ours. Where a handler keeps the event of a stream that was
    left, its traceback keeps ours alive, and the text would be written to its end: so the outermost
    generator is our own, and stops the call.

    Args:
        callback: makes LlamaIndex's decorator.
        view: makes the responses.
    """

    def of(method: Callable[..., Any]) -> Any:
        @functools.wraps(method)
        def stream(llm: Any, *arguments: Any, **named: Any) -> Generator[R, None, None]:
            calls: list[Call] = []

            def begin(*given: Any, **more: Any) -> Generator[R, None, None]:
                calls.append(method(*given, **more))
                return _streamed(calls[0], view)

            return _until_left(callback()(begin)(llm, *arguments, **named), calls[0])

        @functools.wraps(method)
        async def astream(llm: Any, *arguments: Any, **named: Any) -> AsyncGenerator[R, None]:
            calls: list[Call] = []

            async def begin(*given: Any, **more: Any) -> AsyncGenerator[R, None]:
                calls.append(await method(*given, **more))
                return _astreamed(calls[0], view)

            responses = await callback()(begin)(llm, *arguments, **named)
            return _auntil_left(responses, calls[0])

        return astream if inspect.iscoroutinefunction(method) else stream

    return of


def _until_left(responses: Generator[R, None, None], call: Call) -> Generator[R, None, None]:
    try:
        yield from responses
    finally:
        call.stop()


async def _auntil_left(responses: AsyncGenerator[R, None], call: Call) -> AsyncGenerator[R, None]:
    try:
        async with contextlib.aclosing(responses):
            async for response in responses:
                yield response
    finally:
        call.stop()


def _streamed(call: Call, view: View[R]) -> Generator[R, None, None]:
    """A response for every delta, and one at the end that says what it cost."""
    with contextlib.closing(call.deltas()) as deltas:
        for delta in deltas:
            yield view(call.reply, delta, None)
    yield view(call.reply, Delta(), call.raw())


async def _astreamed(call: Call, view: View[R]) -> AsyncGenerator[R, None]:
    """`_streamed` for an event loop."""
    async with contextlib.aclosing(call.adeltas()) as deltas:
        async for delta in deltas:
            yield view(call.reply, delta, None)
    yield view(call.reply, Delta(), call.raw())
