"""A chat of any form as a chat template takes it: the way from a user's messages to the ones that
are rendered, and back to their numbers where a template refuses one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from foreal_core.errors import ConfigError
from foreal_core.text.tool_forms import refuse_tools, tool_form
from foreal_core.text.tool_messages import Message, ToolForm, in_form
from foreal_core.text.turns import in_turn, system_place, with_systems, with_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
# Renders messages that a template takes; the text goes before the template.
Render = Callable[[Sequence[Message], str], T]


def render_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    render: Render[T],
) -> T:
    """What `render` makes of the messages in the form that the chat template takes.

    Tool calls and results are put into the form that shows them, late system messages are merged
    into the first where the template shows no others, and if it refuses the turns as they are, the
    missing ones are added (see `in_turn`).

    Raises:
        ConfigError: the template refuses the messages, or one of them cannot be shown; it names
            the message's number where one is to blame. Tools that are not shown.
    """
    if tools:
        refuse_tools(tokenizer)
    prepared = with_systems(with_text(messages), system_place(tokenizer))
    form = _form(tokenizer, messages, tools)

    def attempt(turns: Sequence[Message]) -> T:
        return render(in_form(turns, form), form.prelude)

    try:
        return attempt(prepared)
    except Exception as error:
        repaired = in_turn(prepared)
        if repaired != prepared:
            try:
                return attempt(repaired)
            except Exception:
                pass  # what it says of the user's own messages helps more
        if isinstance(error, ConfigError):
            raise
        blamed = _blamed(tokenizer, messages, tools, render, str(error))
        raise ConfigError(f"the chat template refused {blamed}: {error}") from error


def _form(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None
) -> ToolForm:
    called = [index for index, message in enumerate(messages) if message.get("tool_calls")]
    if not called and all(message["role"] != "tool" for message in messages):
        return ToolForm()
    form = tool_form(tokenizer, tools=bool(tools))
    if form is None and called:
        raise ConfigError(
            f"messages[{called[0]}] calls a tool, and the chat template shows no such calls: leave "
            "calls and their results out, or set tokenizer.chat_template to a template that shows "
            "them."
        )
    return form or ToolForm()


def _blamed(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    render: Render[Any],
    told: str,
) -> str:
    """The first message from which on the template says this, if there is one."""

    def refused(chat: Sequence[Mapping[str, Any]]) -> bool:
        try:
            prepared = with_systems(with_text(chat), system_place(tokenizer))
            form = _form(tokenizer, chat, tools)
            render(in_form(prepared, form), form.prelude)
        except Exception as error:
            return str(error) == told
        return False

    if refused([{"role": "user", "content": "1"}]):
        return "these messages"
    low, high = 0, len(messages)  # the first `low` are taken, the first `high` are refused
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refused(messages[:middle]) else (middle, high)
    return f"messages[{high - 1}] (role {messages[high - 1]['role']!r})"
