"""What a request asks for: prompts, and the settings of each choice. Knows no HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from foreal_core.chat.messages import callable_unmarked, chosen_tools, held_to_calls
from foreal_core.chat.unmarked import NO_TOOLS, UnmarkedTools
from foreal_core.config import FoReaLConfig
from foreal_core.randomness import stream_seed
from foreal_core.serve.chats import to_chat, to_tools
from foreal_core.serve.errors import refused
from foreal_core.serve.requests import (
    ChatRequest,
    CompletionRequest,
    Message,
    ResponseFormat,
    Sampling,
    Tool,
)

# OpenAI's settings that FoReaLConfig calls the same.
_SAME_NAMES = (
    *("temperature", "top_p", "stop"),
    *("presence_penalty", "frequency_penalty", "logit_bias"),
)
# Fields that would change the answer and are not known here, and what to give instead.
_REFUSED = {
    **{"json_schema": "response_format", "call_schema": "tools", "call_required": "tool_choice"},
    **{"functions": "tools", "function_call": "tool_choice"},
}
# Fields of FoReaLConfig that a request may have by their own names.
SETTINGS = frozenset(field.name for field in dataclasses.fields(FoReaLConfig)) - _REFUSED.keys()
# What the tokenizer takes beside the template's own arguments: a template from outside could run
# for ever, and the rest has its own fields.
_NOT_FOR_TEMPLATES = frozenset(
    {"chat_template", "conversation", "messages", "tools", "tokenizer", "tokenizer_kwargs"}
    | {"tokenize", "truncation", "max_length", "padding", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "continue_final_message", "split_special_tokens"}
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a request's answers.

    Attributes:
        prompt: which of the request's prompts it goes on from.
        settings: its own; choices of one prompt differ in their seeds.
    """

    prompt: int
    settings: FoReaLConfig


@dataclasses.dataclass(frozen=True)
class Ask:
    """What one request asks for.

    Attributes:
        prompts: arguments of the decoder's methods that take a prompt.
        choices: in the order of the answer.
        stream: the answer comes as events.
        usage: a stream ends with its usage.
        tokens: the answer tells who wrote each token.
        tools: calls are looked for in the answer.
        unmarked: what it may also call without the template's marks.
        single_call: of several calls only the first counts.
    """

    prompts: tuple[Mapping[str, Any], ...]
    choices: tuple[Choice, ...]
    stream: bool
    usage: bool
    tokens: bool
    tools: bool = False
    unmarked: UnmarkedTools = NO_TOOLS
    single_call: bool = False


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What holds where a request says nothing.

    Attributes:
        settings: the server's.
        most_choices: choices that a request may have at most.
    """

    settings: FoReaLConfig
    most_choices: int


def of_chat(request: ChatRequest, defaults: Defaults) -> Ask:
    """What a chat asks for.

    Raises:
        ApiError, ConfigError: something in it is not allowed.
    """
    settings = _settings(request, defaults.settings, _token_limit(request))
    schema = _schema(request.response_format)
    if schema is not None:
        settings = settings.with_overrides(json_schema=schema)
    tools, forced = _tools(request.tools, request.tool_choice)
    parallel = request.parallel_tool_calls
    strict = any(tool.function.strict for tool in request.tools or ())
    settings = held_to_calls(settings, tools, forced=forced, parallel=parallel, strict=strict)
    return _ask(
        request,
        (chat_prompt(request.messages, tools, request.chat_template_kwargs),),
        settings,
        defaults,
        tools=bool(tools),
        unmarked=callable_unmarked(tools, settings),
        single_call=request.parallel_tool_calls is False,
    )


def chat_prompt(
    messages: Sequence[Message],
    tools: list[dict[str, Any]],
    template_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The arguments of the decoder's calls for a chat.

    Raises:
        ApiError, ConfigError: something in it is not allowed.
    """
    prompt: dict[str, Any] = {"messages": to_chat(messages)}
    if tools:
        prompt["tools"] = tools
    if template_kwargs:
        if taken := sorted(_NOT_FOR_TEMPLATES.intersection(template_kwargs)):
            raise refused(
                f"chat_template_kwargs: {taken[0]!r} is not allowed: only what the template itself "
                "understands (enable_thinking, documents, ...).",
                "chat_template_kwargs",
            )
        prompt["chat_template_kwargs"] = template_kwargs
    return prompt


def of_completion(request: CompletionRequest, defaults: Defaults) -> Ask:
    """What a completion asks for; raises as `of_chat`."""
    if request.echo:
        raise refused("echo=true is not allowed: prompts are not sent back.", "echo")
    if request.suffix:
        raise refused("suffix is not allowed: these models write forward only.", "suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise refused(f"best_of={request.best_of} is not allowed: leave it out.", "best_of")
    settings = _settings(request, defaults.settings, request.max_tokens)
    prompts = [{"prompt": prompt} for prompt in _prompts(request.prompt)]
    return _ask(request, tuple(prompts), settings, defaults)


def _prompts(given: Any) -> list[Any]:
    """A prompt, or each of several; a list of integers is one."""
    several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    return list(given) if several else [given]


def _ask(
    request: Sampling,
    prompts: tuple[Mapping[str, Any], ...],
    settings: FoReaLConfig,
    defaults: Defaults,
    **chat: Any,
) -> Ask:
    count = 1 if request.n is None else request.n
    if count < 1 or count * len(prompts) > defaults.most_choices:
        raise refused(
            f"n={count} for {len(prompts)} prompt(s) is not allowed: 1 to {defaults.most_choices} "
            "answers in all.",
            "n",
        )
    stream = bool(request.stream)
    if stream and count * len(prompts) > 1:
        raise refused(
            f"n={count} for {len(prompts)} prompt(s) is not allowed with stream=true, since many "
            "clients would mix the texts: ask for one answer, or leave stream out.",
            "n",
        )
    choices = [
        Choice(index // count, _with_seed(settings, index)) for index in range(count * len(prompts))
    ]
    options = request.stream_options
    return Ask(
        prompts,
        tuple(choices),
        stream,
        usage=options is not None and bool(options.include_usage),
        tokens=bool(request.foreal_tokens),
        **chat,
    )


def _with_seed(settings: FoReaLConfig, index: int) -> FoReaLConfig:
    """The settings of one of a request's choices, each with random numbers of its own."""
    if settings.seed is None or index == 0:
        return settings
    return settings.with_overrides(seed=stream_seed(settings.seed, index))


def _settings(request: Sampling, defaults: FoReaLConfig, limit: int | None) -> FoReaLConfig:
    """The server's settings with the request's: OpenAI's fields, and ours by their own names."""
    extra = request.model_extra or {}
    for name, instead in _REFUSED.items():
        if extra.get(name) is not None:
            raise refused(f"{name} is not allowed: give {instead}.", name)
    given = {name: extra[name] for name in SETTINGS if extra.get(name) is not None}
    for name in _SAME_NAMES:
        if (value := getattr(request, name)) is not None:
            given[name] = value
    if request.seed is not None:
        given["seed"] = request.seed % 2**63  # OpenAI's may be negative
    if limit is not None and given.setdefault("max_new_tokens", limit) != limit:
        raise refused(
            f"max_tokens={limit} and max_new_tokens={given['max_new_tokens']} contradict each "
            "other: they are two names of one setting.",
            "max_tokens",
        )
    given |= _logprobs(request)
    return defaults.with_overrides(**given)


def _logprobs(request: Sampling) -> dict[str, Any]:
    """The two interfaces ask for log-probabilities in two ways."""
    if isinstance(request, CompletionRequest):
        asked = request.logprobs
        return {} if asked is None else {"logprobs": True, "top_logprobs": asked}
    if not isinstance(request, ChatRequest) or not request.logprobs:
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0}


def _token_limit(request: ChatRequest) -> int | None:
    """The token limit, which has two names."""
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise refused(
            f"max_tokens={old} and max_completion_tokens={new} contradict each other: they are two "
            "names of one setting.",
            "max_completion_tokens",
        )
    return old if new is None else new


def _schema(asked: ResponseFormat | None) -> Any:
    """The schema that the answer is held to, if any."""
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "object"}
    if asked.type != "json_schema":
        raise refused(
            f"response_format.type={asked.type!r} is not allowed: text, json_object or "
            "json_schema.",
            "response_format.type",
        )
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        raise refused(
            "response_format.json_schema.schema is missing.", "response_format.json_schema"
        )
    return asked.json_schema.schema_


def _tools(tools: list[Tool] | None, choice: Any) -> tuple[list[dict[str, Any]], bool]:
    """The tools that are shown, and whether one must be called. A choice without tools says
    nothing: LlamaIndex sends "required" with each structured answer."""
    shown = to_tools(tools)
    return chosen_tools(shown, choice) if shown else ([], False)
