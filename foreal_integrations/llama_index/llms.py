"""FoReaLLLM: the pair as a LlamaIndex LLM."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from pydantic import PrivateAttr

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, Prompt
from foreal_core.chat.ledger import KEPT_RECORDS
from foreal_core.chat.messages import asking, callable_unmarked, chosen_tools, held_to_calls
from foreal_core.chat.replies import ReplyReader, splitter_of
from foreal_core.chat.settings import (
    SETTINGS,
    TEMPLATE_OPTIONS,
    canonical,
    refuse_unknown,
    template_options,
)
from foreal_core.text.tool_forms import takes_tools
from foreal_integrations.fields import PairFields, check_timeout
from foreal_integrations.llama_index.calls import (
    Call,
    RequestRefusedError,
    awhole,
    refusing,
    streams,
    whole,
)
from foreal_integrations.llama_index.costs import Account, Bill, Meter
from foreal_integrations.llama_index.messages import Reply, to_chat
from foreal_integrations.llama_index.structured import ConstrainedPredictions

if TYPE_CHECKING:
    from llama_index.core.tools import BaseTool

__all__ = ["FoReaLLLM", "RequestRefusedError"]

_ARGUMENTS = frozenset({*SETTINGS, *TEMPLATE_OPTIONS, "timeout"})
_COMPLETION_ARGUMENTS = _ARGUMENTS | {"raw_prompt"}
_CHAT_ARGUMENTS = _ARGUMENTS | {"tools", "tool_choice", "allow_parallel_tool_calls"}
# LlamaIndex reserves the output's share of the context window; prompts need the rest.
_OUTPUT_SHARE = 4


@dataclass(frozen=True)
class _Ask:
    """What one call asks for, prompt apart.

    Attributes:
        template: what the chat template is told; `told`: of this call's own.
    """

    settings: FoReaLConfig
    template: dict[str, Any]
    told: dict[str, Any]
    timeout: float | None
    tools: list[dict[str, Any]]
    forced: bool
    parallel: bool
    raw_prompt: bool
    account: Account


class FoReaLLLM(PairFields, ConstrainedPredictions, CustomLLM, FunctionCallingLLM):
    """A leader and a draft that write one text, as a LlamaIndex LLM.

        Settings.llm = FoReaLLLM(leader="...", draft="...", max_new_tokens=512)
        with Settings.llm.track_costs() as bill:
            print(index.as_query_engine(streaming=True).query("..."))
        response = Settings.llm.chat(messages, lead_count=8, seed=1)
        response.raw["usage"], response.raw["foreal"]        # tokens; the cost record

    Every field of `FoReaLConfig` is an argument of the constructor and of each call; `max_tokens`
    is another name of `max_new_tokens`. Unknown arguments are refused. Nothing is loaded before
    the first call or the first look at `metadata`; concurrent calls share the models' passes.

    Prompts go through the chat template of the leader's tokenizer, as one user message where they
    are plain text. The text of a response is the answer; what stood inside `<think>` is a
    ThinkingBlock before it (`additional_kwargs["thinking_delta"]` in streams, `raw["thinking"]` of
    completions), and is left out of later prompts.

    LlamaIndex packs prompts by a tokenizer of its own; `Settings.tokenizer = llm.get_token_ids`
    makes it count the pair's tokens.

    Tools are shown by templates that know them, and calls are read in the form that the template
    shows. Forced calls, `structured_predict` and `as_structured_llm` write under a JSON schema
    (extra "json").

    Raises:
        ConfigError: a wrong or unknown argument, in the constructor or in a call.
        RequestRefusedError: the models cannot take a prompt, its tools or its schema.
        ContextOverflowError: a prompt leaves no room to write.
        TimeoutError: a call took longer than `timeout` seconds.
    """

    raw_prompt: bool = False
    """Prompts of `complete` go to the models as they are; also an argument of every such call."""

    _meter: Meter = PrivateAttr(default_factory=Meter)

    # -- the eight methods: decorated once each, and none calls another -------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return whole(self._completion_call(prompt, formatted, kwargs), Reply.completion)

    @streams(llm_completion_callback, Reply.completion)
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Call:
        return self._completion_call(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        call = await self._acompletion_call(prompt, formatted, kwargs)
        return await awhole(call, Reply.completion)

    @streams(llm_completion_callback, Reply.completion)
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Call:
        return await self._acompletion_call(prompt, formatted, kwargs)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return whole(self._chat_call(messages, kwargs), Reply.chat)

    @streams(llm_chat_callback, Reply.chat)
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Call:
        return self._chat_call(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await awhole(await self._achat_call(messages, kwargs), Reply.chat)

    @streams(llm_chat_callback, Reply.chat)
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Call:
        return await self._achat_call(messages, kwargs)

    # -- tools ----------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `chat`; `tool_choice` wins over `tool_required`."""
        messages = list(chat_history or ())
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
            messages.append(user_msg)
        if tool_choice is None and tool_required:
            tool_choice = "required"
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice,
            "allow_parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a reply.

        Raises:
            ValueError: there is none and `error_on_no_tool_call` is set.
        """
        calls = [
            ToolSelection(
                tool_id=block.tool_call_id or "",
                tool_name=block.tool_name,
                tool_kwargs=block.tool_kwargs,
            )
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock) and isinstance(block.tool_kwargs, dict)
        ]
        if not calls and error_on_no_tool_call:
            raise ValueError(
                f"a tool call was expected and the model wrote none: {response.message.content!r}"
            )
        return calls

    # -- costs ----------------------------------------------------------------------------------

    def track_costs(
        self, *, keep_records: int | None = KEPT_RECORDS
    ) -> contextlib.AbstractContextManager[Bill]:
        """Charges every call that this model gets inside the block, whoever makes it: engines,
        agents, tasks and threads started there. Streams pay when they end, closed, cancelled and
        failed ones too, also after the block.

        Blocks may be nested: a call is charged to all around it. Blocks of concurrent queries
        keep apart, except for bare threads (`threading.Thread`, a pool's), which carry no context:
        their calls are charged to every open block.

            with llm.track_costs() as bill:
                query_engine.query("...")
            print(bill, bill.totals()["flops_written"])
            bill.generations[-1]                 # who wrote what, in colours in a notebook

        Args:
            keep_records: of how many calls, the last ones, the bill keeps records and texts; None
                keeps all. Sums are of all calls.
        """
        return self._meter.block(keep_records)

    # -- what LlamaIndex asks about the model -----------------------------------------------------

    @classmethod
    def class_name(cls) -> str:
        return "FoReaLLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """Loads the pair if need be: what it takes is not known before."""
        decoder = self._decoder()
        output = self._settings(None, {}).max_new_tokens
        return LLMMetadata(
            context_window=decoder.max_context,
            num_output=min(output, decoder.max_context // _OUTPUT_SHARE),
            is_chat_model=decoder.has_chat_template,
            is_function_calling_model=self._uses_template(decoder)
            and takes_tools(decoder.tokenizer),
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """What events say about the model: settings, and the metadata once the pair is loaded (a
        call in an event loop loads it in a thread)."""
        loaded = self._source.loaded is not None
        known = self.metadata.model_dump() if loaded else {"model_name": self.model_name}
        return {
            "class_name": self.class_name(),
            **known,
            "settings": self._settings(None, {}).to_dict(),
        }

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The constructor's arguments. A loaded pair is named and not carried:
        `from_dict(data, decoder=...)` gives it back."""
        data = super().to_dict(**kwargs)
        if self.decoder is not None:
            data["decoder"] = self.model_name
        return data

    # -- parts ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, arguments: Mapping[str, Any], known: Collection[str]) -> Iterator[_Ask]:
        """Opens a call's account and reads its arguments; failures of the block are noted."""
        account = self._meter.account()
        with account.counting_failures():
            arguments = canonical(arguments)
            refuse_unknown(arguments, known, f"a call of {self.class_name()}")
            timeout = arguments.get("timeout", self.timeout)
            check_timeout(timeout)
            given = [
                dict(tool) if isinstance(tool, Mapping) else tool.metadata.to_openai_tool()
                for tool in arguments.get("tools") or ()
            ]
            tools, forced = chosen_tools(given, arguments.get("tool_choice"))
            overrides = {name: arguments[name] for name in SETTINGS if name in arguments}
            settings = self._settings(overrides.pop("stop", None), overrides)
            parallel = arguments.get("allow_parallel_tool_calls")
            yield _Ask(
                settings=held_to_calls(settings, tools, forced=forced, parallel=parallel),
                template=self._template(arguments),
                told=template_options(arguments),
                timeout=timeout,
                tools=tools,
                forced=forced,
                parallel=parallel is None or bool(parallel),
                raw_prompt=bool(arguments.get("raw_prompt", self.raw_prompt)),
                account=account,
            )

    def _completion_call(self, prompt: str, formatted: bool, arguments: Mapping[str, Any]) -> Call:
        with self._opened(arguments, _COMPLETION_ARGUMENTS) as ask:
            decoder = self._decoder()
            with refusing():
                request = self._of_prompt(decoder, prompt, formatted, ask)
                return self._call(decoder, decoder.prepare(**request), ask)

    async def _acompletion_call(
        self, prompt: str, formatted: bool, arguments: Mapping[str, Any]
    ) -> Call:
        with self._opened(arguments, _COMPLETION_ARGUMENTS) as ask:
            decoder = await self._adecoder()
            with refusing():
                request = self._of_prompt(decoder, prompt, formatted, ask)
                return self._call(decoder, await self._aprepare(decoder, **request), ask)

    def _chat_call(self, messages: Sequence[ChatMessage], arguments: Mapping[str, Any]) -> Call:
        with self._opened(arguments, _CHAT_ARGUMENTS) as ask:
            decoder = self._decoder()
            with refusing():
                request = self._of_chat(decoder, messages, ask)
                return self._call(decoder, decoder.prepare(**request), ask)

    async def _achat_call(
        self, messages: Sequence[ChatMessage], arguments: Mapping[str, Any]
    ) -> Call:
        with self._opened(arguments, _CHAT_ARGUMENTS) as ask:
            decoder = await self._adecoder()
            with refusing():
                request = self._of_chat(decoder, messages, ask)
                return self._call(decoder, await self._aprepare(decoder, **request), ask)

    def _of_prompt(
        self, decoder: FoReaLDecoder, prompt: str, formatted: bool, ask: _Ask
    ) -> dict[str, Any]:
        """What is to be encoded for a prompt; `formatted` ones need no template."""
        ready = formatted or ask.raw_prompt
        own = self.completion_to_prompt
        if not ready and own is not None and own is not default_completion_to_prompt:
            prompt, ready = own(prompt), True
        # What the constructor says to the template is meant for where it is used.
        template = ask.told if ready else ask.template
        return {**asking(decoder, prompt, raw=ready), "chat_template_kwargs": template}

    def _of_chat(
        self, decoder: FoReaLDecoder, messages: Sequence[ChatMessage], ask: _Ask
    ) -> dict[str, Any]:
        """What is to be encoded for a chat."""
        if self._uses_template(decoder):
            chat = {"messages": to_chat(messages), "tools": ask.tools or None}
            return {**chat, "chat_template_kwargs": ask.template}
        if ask.tools:
            raise ConfigError(
                "tools need a chat template: leave out messages_to_prompt and use a model whose "
                "template shows tools."
            )
        prompt = (self.messages_to_prompt or generic_prompt)(messages)
        return {"prompt": prompt, "chat_template_kwargs": ask.told}

    def _uses_template(self, decoder: FoReaLDecoder) -> bool:
        return decoder.has_chat_template and self.messages_to_prompt is generic_prompt

    def _call(self, decoder: FoReaLDecoder, prompt: Prompt, ask: _Ask) -> Call:
        bos = decoder.tokenizer.bos_token_id
        while bos is not None and prompt.ids[:2] == (bos, bos):  # of the text and of the tokenizer
            prompt = replace(prompt, ids=prompt.ids[1:])
        unmarked = callable_unmarked(ask.tools, ask.settings)
        splitter = splitter_of(
            decoder.tokenizer, prompt.ids, tools=bool(ask.tools), unmarked=unmarked
        )
        reply = Reply(ReplyReader(splitter, parallel=ask.parallel), forced=ask.forced)
        return Call(self.model_name, decoder, prompt, ask.settings, ask.timeout, ask.account, reply)
