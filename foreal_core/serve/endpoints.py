"""The endpoints that write: chats and completions; and the one that counts tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from foreal_core.config import FoReaLConfig
from foreal_core.events import Generation
from foreal_core.serve import asks
from foreal_core.serve.answers import Context, Record, chat_answer, text_answer
from foreal_core.serve.asks import Ask
from foreal_core.serve.chats import to_tools
from foreal_core.serve.chunks import ChatWriter, EventWriter, TextWriter
from foreal_core.serve.exchange import Exchange
from foreal_core.serve.interrupts import Interrupt, interrupts, unless
from foreal_core.serve.replies import ChatReply
from foreal_core.serve.requests import (
    ChatRequest,
    CompletionRequest,
    TokenizeChat,
    TokenizeRequest,
)
from foreal_core.serve.running import generations, send_stream
from foreal_core.serve.service import Service

if TYPE_CHECKING:
    from foreal_core.decoder import FoReaLDecoder
    from foreal_core.prompts import Prompt

_logger = logging.getLogger(__name__)
# Encoding more than this may hold the event loop up for longer than a few milliseconds.
_LONG_BODY = 16_384

Form = TypeVar("Form", ChatRequest, CompletionRequest, TokenizeRequest)
T = TypeVar("T")


class Endpoints:
    """Answers requests with a service's pair."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions"""
        request, size = await self._read(exchange, ChatRequest)
        ask = asks.of_chat(request, self._service.defaults)
        context = self._context("chatcmpl", ask)

        def reply(prompt: Prompt) -> ChatReply:
            field = self._service.options.reasoning
            tokenizer = self._service.decoder.tokenizer
            return ChatReply(ask, field, tokenizer, prompt.ids)

        def writer(prompt: Prompt) -> EventWriter:
            return ChatWriter(context, reply(prompt))

        def answer(prompts: list[Prompt], ends: Sequence[Generation]) -> Record:
            replies = [reply(prompts[choice.prompt]) for choice in ask.choices]
            return chat_answer(context, replies, ends)

        await self._run(exchange, ask, size, writer, answer)

    async def completion(self, exchange: Exchange) -> None:
        """POST /v1/completions"""
        request, size = await self._read(exchange, CompletionRequest)
        ask = asks.of_completion(request, self._service.defaults)
        context = self._context("cmpl", ask)
        await self._run(
            exchange,
            ask,
            size,
            lambda prompt: TextWriter(context),
            lambda prompts, ends: text_answer(context, ends),
        )

    async def tokenize(self, exchange: Exchange) -> None:
        """POST /tokenize"""
        request, size = await self._read(exchange, TokenizeRequest)
        given = request.root
        prompt: dict[str, Any]
        if isinstance(given, TokenizeChat):
            prompt = asks.chat_prompt(
                given.messages, to_tools(given.tools), given.chat_template_kwargs
            )
        else:
            prompt = {"prompt": given.prompt}
        decoder = self._service.decoder
        with self._service.admission.admit(1):
            ids = await _off_loop(size, partial(_count, decoder, prompt))
        record: Record = {
            "count": len(ids),
            "max_model_len": decoder.max_context,
            "tokens": ids,
        }
        if given.return_token_strs:
            record["token_strs"] = decoder.tokenizer.convert_ids_to_tokens(ids)
        await exchange.answer(200, json.dumps(record).encode())

    # -- the way of a request --------------------------------------------------------------------

    async def _read(self, exchange: Exchange, form: type[Form]) -> tuple[Form, int]:
        """The request, and the bytes of its body."""
        body = await exchange.body()
        request = form.model_validate_json(body)
        self._service.decoder  # noqa: B018  # refuses while it loads
        self._service.refuse_other_model(request.model)
        if self._service.options.log_prompts:
            _logger.info("request: %s", body.decode("utf-8", "replace"))
        return request, len(body)

    def _context(self, kind: str, ask: Ask) -> Context:
        tokenizer = self._service.decoder.pair_tokenizer
        name = f"{kind}-{uuid.uuid4().hex}"
        return Context(name, int(time.time()), self._service.model, ask, tokenizer)

    async def _run(
        self,
        exchange: Exchange,
        ask: Ask,
        size: int,
        writer: Callable[[Prompt], EventWriter],
        answer: Callable[[list[Prompt], Sequence[Generation]], Record],
    ) -> None:
        service, options = self._service, self._service.options
        with service.admission.admit(len(ask.choices)):
            async with interrupts(
                exchange, options.request_timeout, service.admission.halted
            ) as interrupt:
                prompts = [
                    await unless(
                        interrupt, _off_loop(size, partial(service.decoder.prepare, **given))
                    )
                    for given in ask.prompts
                ]
                if ask.stream:
                    await self._stream(exchange, ask, prompts[0], writer(prompts[0]), interrupt)
                    return
                work = [(prompts[choice.prompt], choice.settings) for choice in ask.choices]
                ends = await unless(interrupt, generations(service.decoder, work, self._on_done()))
                body = json.dumps(answer(prompts, ends)).encode()
            await exchange.answer(200, body)

    async def _stream(
        self,
        exchange: Exchange,
        ask: Ask,
        prompt: Prompt,
        writer: EventWriter,
        interrupt: Interrupt,
    ) -> None:
        decoder = self._service.decoder
        settings: FoReaLConfig = ask.choices[0].settings
        stream = decoder.astream(prompt, settings, on_done=self._on_done())
        await send_stream(
            exchange, writer, stream, interrupt, self._service.options, decoder.max_context
        )

    def _on_done(self) -> Callable[[Any], None]:
        """Tells the metrics how a generation ended, from the engine's thread."""
        loop, ended = asyncio.get_running_loop(), self._service.metrics.ended

        def on_done(end: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended, end)

        return on_done


def _count(decoder: FoReaLDecoder, given: Mapping[str, Any]) -> list[int]:
    """The ids, of a prompt that is longer than the context too."""
    tokenizer = decoder.pair_tokenizer
    if "messages" in given:
        return tokenizer.encode_chat(
            given["messages"], tools=given.get("tools"), **given.get("chat_template_kwargs", {})
        )
    return tokenizer.encode(given["prompt"])


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    """The result of `work`, in a thread where it may take long."""
    return await asyncio.to_thread(work) if size > _LONG_BODY else work()
