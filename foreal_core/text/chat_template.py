"""Messages rendered by a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from foreal_core.errors import ConfigError
from foreal_core.text.conversation import render_conversation
from foreal_core.text.plain_contents import apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATE_ARGUMENTS: Final = frozenset({"tokenize", "return_dict", "return_tensors", "padding"})


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `render_chat` can work."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    special_tokens_in_messages: bool = False,
    **template_kwargs: Any,
) -> list[int]:
    """The ids of a chat as the template writes it, up to where the answer begins.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: dicts with "role" and "content" (or "tool_calls").
        tools: functions or JSON schemas, for templates that show them.
        special_tokens_in_messages: special tokens that messages, tools and documents spell become
            tokens, as the template's own do; else they are encoded as the text that they are.
        template_kwargs: what the template itself understands ("enable_thinking", ...).

    Raises:
        ConfigError: malformed messages, no chat template, or an error of the template.
    """
    check_messages(messages)
    for message in messages:
        if isinstance(content := message.get("content"), str):
            refuse_surrogates(content)
    if not has_chat_template(tokenizer):
        raise ConfigError(
            "messages need a chat template and this tokenizer has none: pass a str prompt, "
            "use an instruction-tuned model, or set tokenizer.chat_template."
        )
    if refused := _TEMPLATE_ARGUMENTS.intersection(template_kwargs):
        raise ConfigError(
            f"chat template argument {min(refused)!r} is not allowed: "
            "the result is always one list of ids."
        )
    shown = list(tools) if tools else None

    def render(chat: Sequence[Mapping[str, Any]], prelude: str) -> list[int]:
        arguments = {"add_generation_prompt": True, **template_kwargs}
        if prelude:
            given = arguments.get("chat_template")
            arguments["chat_template"] = prelude + tokenizer.get_chat_template(given, tools=shown)
        if not special_tokens_in_messages:
            return apply_template(tokenizer, chat, shown, arguments)
        ids: list[int] = tokenizer.apply_chat_template(
            list(chat), tools=shown, tokenize=True, return_dict=False, **arguments
        )
        return ids

    return render_conversation(tokenizer, messages, tools, render)


def refuse_surrogates(text: str) -> None:
    """Bytes that are no UTF-8 reach Python as lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the prompt is no valid text: a lone surrogate {text[error.start]!r} at character "
            f"{error.start}. Decode the bytes it came from with their own encoding."
        ) from None


def check_messages(messages: object) -> None:
    expected = 'a non-empty list of {"role": ..., "content": ...} dicts'
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ConfigError(f"messages must be {expected}, not {type(messages).__name__}.")
    if not messages:
        raise ConfigError(f"messages is empty: it must be {expected}.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ConfigError(
                f"messages[{index}] is {type(message).__name__}: messages must be {expected}."
            )
        if not isinstance(message.get("role"), str):
            raise ConfigError(
                f'messages[{index}] has no "role" string: messages must be {expected}.'
            )
        if "content" not in message and "tool_calls" not in message:
            raise ConfigError(f'messages[{index}] has no "content": messages must be {expected}.')
