"""The turns of a chat as templates insist on them: text in each, one system message in front, users
and assistants in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from foreal_core.errors import ConfigError
from foreal_core.text.template_trials import found_once, rendered
from foreal_core.text.tool_messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where a template shows system messages: all in their places, the first one alone, or none.
SystemPlace = Literal["anywhere", "first", "nowhere"]


def with_text(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with one text each; None counts as "", parts of a text are joined by newlines.

    Raises:
        ConfigError: a message holds something else, by its number.
    """
    return [
        {**message, "content": _text(message.get("content"), index)}
        for index, message in enumerate(messages)
    ]


def _text(content: Any, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ConfigError(
            f"messages[{index}] has a content of type {type(content).__name__}: it must be a str "
            'or a list of {"type": "text", "text": ...}.'
        )
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ConfigError(
                f"messages[{index}] holds a content part of type {kind!r}: these models read text "
                "only."
            )
        parts.append(text)
    return "\n".join(parts)


def system_place(tokenizer: PreTrainedTokenizerBase) -> SystemPlace:
    """Where the chat template shows system messages."""

    def attempt() -> SystemPlace:
        early, late = {"role": "system", "content": "Qarp."}, {"role": "system", "content": "Jyx."}
        asked, told = {"role": "user", "content": "kelp"}, {"role": "assistant", "content": "mulm"}
        shown = rendered(tokenizer, [early, asked, told, late, asked]) or ""
        if -1 < shown.find("Qarp.") < shown.find("mulm") < shown.find("Jyx."):
            return "anywhere"
        if "Qarp." in (rendered(tokenizer, [early, asked]) or ""):
            return "first"
        # One that takes no question either is at fault in another way, and says so itself.
        return "anywhere" if rendered(tokenizer, [asked]) is None else "nowhere"

    return found_once(tokenizer, "system place", attempt)


def with_systems(messages: Sequence[Message], place: SystemPlace) -> list[Message]:
    """The messages with system messages where the template shows them: late and further ones are
    merged into the first.

    Raises:
        ConfigError: the template shows none; it names the message's number.
    """
    at = [index for index, message in enumerate(messages) if message["role"] == "system"]
    if not at or place == "anywhere":
        return list(messages)
    if place == "nowhere":
        raise ConfigError(
            f"messages[{at[0]}] is a system message, and the chat template takes none: put what it "
            "says into the first user message."
        )
    text = "\n".join(messages[index]["content"] for index in at)
    others = [message for message in messages if message["role"] != "system"]
    return [{**messages[at[0]], "content": text}, *others]


def in_turn(messages: Sequence[Message]) -> list[Message]:
    """The messages with users and assistants in turn, users first: neighbours of one role become
    one message, and where a turn is missing an empty one stands.

    A history that was trimmed may begin with an answer or a tool's result, and an agent that was
    interrupted leaves a result without an answer. Calls of tools and their results are no turns.
    """
    turns: list[Message] = []
    expected = "user"
    begun = False
    for message in messages:
        role = message["role"]
        if role == "system":
            turns.append(message)
            continue
        is_turn = role in ("user", "assistant") and not message.get("tool_calls")
        if not begun and not (is_turn and role == "user"):
            turns.append(_empty("user"))
            expected = "assistant"
        begun = True
        if is_turn:
            last = turns[-1] if turns else {}
            if role != expected and last.get("role") == role and not last.get("tool_calls"):
                parts = [last["content"], message["content"]]
                turns[-1] = {**last, "content": "\n".join(part for part in parts if part)}
                continue
            if role != expected:
                turns.append(_empty(expected))
            expected = "assistant" if role == "user" else "user"
        turns.append(message)
    return turns if begun else [*turns, _empty("user")]


def _empty(role: str) -> Message:
    return {"role": role, "content": ""}
