"""ChatFoReaL: the pair as a LangChain chat model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation as TextGeneration,
    LLMResult,
)
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import PrivateAttr

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Generation, Prompt, TokenEvent
from foreal_core.chat.ledger import free_of_charge
from foreal_core.chat.messages import callable_unmarked, chosen_tools, held_to_calls
from foreal_core.chat.outcomes import outcome
from foreal_core.chat.replies import Part, splitter_of
from foreal_core.text.thinking_marks import thinking_marks
from foreal_core.text.tool_forms import takes_tools
from foreal_integrations.langchain.base import (
    AsyncManager,
    FoReaLModel,
    Manager,
    Request,
    Stop,
)
from foreal_integrations.langchain.callbacks import record_of
from foreal_integrations.langchain.messages import MessageReader, to_chat
from foreal_integrations.langchain.structured import (
    StructureMethod,
    answer_parser,
    call_parser,
    can_constrain,
    raw_and_parsed,
    response_format,
    response_schema,
    tool_json,
)

_ASKED_FOR = ("tools", "tool_choice", "parallel_tool_calls", "strict", "response_format")
# Beside these, what LangChain passes to every chat model.
_PASSED_ON = frozenset(
    {*_ASKED_FOR, "stream", "ls_structured_output_format", "structured_output_format"}
)


Chat: TypeAlias = list[BaseMessage]


@dataclass(frozen=True)
class _Ask:
    """What one call asks for, chat apart."""

    settings: FoReaLConfig
    tools: list[dict[str, Any]] | None
    parallel: bool


class _Reader:
    """A reply as LangChain's generations."""

    def __init__(self, messages: MessageReader, model: str, decoder: FoReaLDecoder) -> None:
        self._messages = messages
        self._model = model
        self._decoder = decoder

    def whole(self, generation: Generation) -> ChatGeneration:
        message = self._messages.message(generation, self._model)
        message.response_metadata.update(outcome(generation, self._decoder))
        return ChatGeneration(message=message)

    def chunks(self, event: TokenEvent) -> Iterator[ChatGenerationChunk]:
        return map(self._chunk, self._messages.feed(event.text, event.token_id))

    def last_chunks(self, generation: Generation) -> Iterator[ChatGenerationChunk]:
        yield from map(self._chunk, self._messages.flush())
        message = self._messages.last_chunk(generation, self._model)
        message.response_metadata.update(outcome(generation, self._decoder))
        yield ChatGenerationChunk(message=message)

    def _chunk(self, part: Part) -> ChatGenerationChunk:
        return ChatGenerationChunk(message=self._messages.chunk(part))


class ChatFoReaL(FoReaLModel, BaseChatModel):
    """A leader and a draft that write one text, as a LangChain chat model.

        chat = ChatFoReaL(leader="...", draft="...", max_new_tokens=512)
        message = chat.invoke("...", lead_count=8, seed=1)
        message.additional_kwargs["reasoning_content"]     # what stood inside <think>
        message.response_metadata["foreal"]                # the cost record

    Chats go through the chat template of the leader's tokenizer. `bind_tools` shows tools to the
    model and reads the calls that it writes, in the form that the template shows.
    Forced calls and answers under a schema (`with_structured_output`, `response_format`,
    `json_schema`) are held to it while they are written, after the thinking. Concurrent calls,
    `batch` and `abatch` share the models' passes.

    Raises:
        ConfigError: a wrong or unknown argument; messages that the template does not take; tools
            that it does not show.
        ContextOverflowError: a chat leaves no room to write.
        TimeoutError: a call took longer than `timeout` seconds.
    """

    _passed_on: ClassVar[frozenset[str]] = _PASSED_ON
    _describes_itself: bool = PrivateAttr(default=True)

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._describes_itself = self.profile is None
        if self._describes_itself:
            self.profile = ModelProfile(
                text_inputs=True,
                text_outputs=True,
                image_inputs=False,
                max_output_tokens=self._settings(None, {}).max_new_tokens,
                structured_output=can_constrain(),
            )
            if self.max_context is not None:
                self.profile["max_input_tokens"] = self.max_context - 1
            if self._source.loaded is not None:
                self._complete_profile(self._source.loaded)

    # -- entry points: each call runs on a copy that holds its settings ---------------------------

    def generate(
        self, messages: list[Chat], stop: Stop = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        call, rest = self._for_call(kwargs, callbacks)
        return super(FoReaLModel, call).generate(messages, stop, callbacks, **rest)

    async def agenerate(
        self, messages: list[Chat], stop: Stop = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        call, rest = self._for_call(kwargs, callbacks)
        return await super(FoReaLModel, call).agenerate(messages, stop, callbacks, **rest)

    # -- what LangChain calls -----------------------------------------------------------------

    def _generate(
        self, messages: Chat, stop: Stop = None, run_manager: Manager = None, **kwargs: Any
    ) -> ChatResult:
        call, arguments = self._entered(run_manager, kwargs)
        request = call._prepared(call._decoder(), messages, stop, arguments)
        decoder, settings = request.decoder, request.settings
        (generation,) = call._generations(decoder, [request.prompt], settings)
        return ChatResult(generations=[request.reader.whole(generation)])

    async def _agenerate(
        self, messages: Chat, stop: Stop = None, run_manager: AsyncManager = None, **kwargs: Any
    ) -> ChatResult:
        call, arguments = self._entered(run_manager, kwargs)
        request = await call._aprepared(messages, stop, arguments)
        decoder, settings = request.decoder, request.settings
        (generation,) = await call._agenerations(decoder, [request.prompt], settings)
        return ChatResult(generations=[request.reader.whole(generation)])

    def _stream(
        self, messages: Chat, stop: Stop = None, run_manager: Manager = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        call, arguments = self._entered(run_manager, kwargs)
        # BaseChatModel fires the token callbacks itself.
        yield from call._chunks(call._prepared(call._decoder(), messages, stop, arguments))

    async def _astream(
        self, messages: Chat, stop: Stop = None, run_manager: AsyncManager = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        call, arguments = self._entered(run_manager, kwargs)
        request = await call._aprepared(messages, stop, arguments)
        async with contextlib.aclosing(call._achunks(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Shows tools to the model and parses its calls of them.

        Args:
            tools: functions, pydantic classes, LangChain tools or OpenAI's JSON.
            tool_choice: None or "auto" leaves it to the model, "none" hides the tools; "any",
                "required", True or a tool's name force a call: after its thinking the model can
                only write one that fits the tool's schema (needs the extra "json").
            parallel_tool_calls: whether a message may hold several calls, where the chat template
                shows several; None allows them unless a call is forced. False keeps the first.
            strict: True holds calls that are not forced to their tools' schemas as well (needs the
                extra "json"); forced ones always are.
            **kwargs: further arguments to bind: settings of the call, or `response_format` as in
                OpenAI's interface; beside tools the model then writes a call or such an answer.

        Raises:
            ConfigError: `tool_choice` names no tool; another argument is neither True nor False;
                when called: the chat template shows no tools, or no calls of them.
        """
        flags = {"parallel_tool_calls": parallel_tool_calls, "strict": strict}
        kwargs |= {name: flag for name in flags if (flag := _flag(name, flags)) is not None}
        formatted = [tool_json(tool) for tool in tools]
        chosen, forced = chosen_tools(formatted, tool_choice)
        if chosen:
            kwargs["tools"] = chosen
        if forced:
            kwargs["tool_choice"] = "any"
        return self.bind(**kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: StructureMethod = "function_calling",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with answers of one structure (needs the extra "json").

        Args:
            schema: a pydantic class (answers are instances of it), a TypedDict, a JSON schema or
                a function in OpenAI's JSON (answers are dicts). "json_mode" needs none.
            include_raw: return {"raw": the message, "parsed": the answer or None,
                "parsing_error": what was wrong or None} instead of raising the error; a stream
                gives these parts as they come, and their sum is what `invoke` returns.
            method: "function_calling" forces a call of one tool, which the chat template shows to
                the model; "json_schema" needs no tools in the template, and shows the schema to
                nobody: say in the prompt what is wanted; "json_mode" is any JSON object.
            strict: for compatibility; answers are always held to the schema.
            **kwargs: settings of the call.

        Raises:
            ConfigError: a wrong argument.
            OutputParserException: when called: the text ended before its answer was whole.
        """
        if method == "function_calling":
            if schema is None:
                raise ConfigError("schema=None is not allowed with method='function_calling'.")
            asked: dict[str, Any] = {"tools": [tool_json(schema)]}
            asked["tool_choice"] = "any"
            parser = call_parser(schema)
        elif method in ("json_schema", "json_mode"):
            asked = {"response_format": response_format(schema, method)}
            parser = answer_parser(schema)
        else:
            raise ConfigError(
                f"method={method!r} is not allowed: it must be one of 'function_calling', "
                "'json_schema', 'json_mode'."
            )
        traced = {"kwargs": {"method": method}, "schema": schema}
        model = self.bind(**asked, ls_structured_output_format=traced, **kwargs)
        return model | (raw_and_parsed(parser) if include_raw else parser)

    def _convert_cached_generations(self, cache_val: list[TextGeneration]) -> list[ChatGeneration]:
        # LangChain changes the objects, which a cache in memory would see.
        copies = [generation.model_copy() for generation in cache_val]
        hits = super()._convert_cached_generations(copies)
        for hit in hits:
            record = record_of(hit)
            if record is not None:
                info = {**hit.message.response_metadata, "foreal": free_of_charge(record)}
                hit.message = hit.message.model_copy(update={"response_metadata": info})
        return hits

    # -- what LangChain asks about the model ----------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "chat-foreal"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._traced("chat", stop, kwargs.get("model"))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of the whole prompt, template and tools included, also of one that is longer than
        the context (loads the pair); none without messages. Of a part of a chat that the template
        refuses, about as many and no fewer."""
        if not messages:
            return 0
        formatted = [tool_json(tool) for tool in tools] if tools else None
        tokenizer = self._decoder().pair_tokenizer
        return tokenizer.count_chat(to_chat(messages), tools=formatted, **self._template({}))

    def _complete_profile(self, decoder: FoReaLDecoder) -> None:
        """Adds what only the loaded pair can tell, for all copies of this model."""
        if not self._describes_itself or self.profile is None or "tool_calling" in self.profile:
            return
        tokenizer = decoder.tokenizer
        shows_tools = takes_tools(tokenizer)
        constrained = can_constrain() and bool(tokenizer.is_fast)
        self.profile["max_input_tokens"] = decoder.max_context - 1
        self.profile["reasoning_output"] = thinking_marks(tokenizer).known
        self.profile["structured_output"] = constrained
        self.profile["tool_choice"] = shows_tools and constrained
        self.profile["tool_calling"] = shows_tools

    # -- parts ------------------------------------------------------------------------------------

    def _prepared(
        self,
        decoder: FoReaLDecoder,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        arguments: Mapping[str, Any],
    ) -> Request[_Reader]:
        ask = self._ask(stop, arguments)
        prompt = decoder.prepare(**self._asking(messages, ask))
        return self._request(decoder, prompt, ask)

    async def _aprepared(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        arguments: Mapping[str, Any],
    ) -> Request[_Reader]:
        ask = self._ask(stop, arguments)
        decoder = await self._adecoder()
        prompt = await self._aprepare(decoder, **self._asking(messages, ask))
        return self._request(decoder, prompt, ask)

    def _asking(self, messages: Sequence[BaseMessage], ask: _Ask) -> dict[str, Any]:
        return {
            "messages": to_chat(messages),
            "tools": ask.tools,
            "chat_template_kwargs": self._template({}),
        }

    def _ask(self, stop: Sequence[str] | None, arguments: Mapping[str, Any]) -> _Ask:
        overrides = {name: value for name, value in arguments.items() if name not in _PASSED_ON}
        settings = self._settings(stop, overrides)
        schema = response_schema(arguments.get("response_format"))
        if schema is not None:
            settings = settings.with_overrides(json_schema=schema)
        tools, forced = chosen_tools(
            [tool_json(tool) for tool in arguments.get("tools") or ()],
            arguments.get("tool_choice"),
        )
        parallel, strict = (_flag(name, arguments) for name in ("parallel_tool_calls", "strict"))
        held = held_to_calls(settings, tools, forced=forced, parallel=parallel, strict=bool(strict))
        return _Ask(held, tools or None, parallel is not False)

    def _request(self, decoder: FoReaLDecoder, prompt: Prompt, ask: _Ask) -> Request[_Reader]:
        self._complete_profile(decoder)
        unmarked = callable_unmarked(ask.tools or (), ask.settings)
        splitter = splitter_of(
            decoder.tokenizer, prompt.ids, tools=ask.tools is not None, unmarked=unmarked
        )
        messages = MessageReader(splitter, parallel=ask.parallel)
        reader = _Reader(messages, self.model_name, decoder)
        return Request(decoder, prompt, ask.settings, reader)


def _flag(name: str, arguments: Mapping[str, Any]) -> bool | None:
    flag = arguments.get(name)
    if flag is not None and not isinstance(flag, bool):
        raise ConfigError(f"{name}={flag!r} is not allowed: it must be True, False or None.")
    return flag
