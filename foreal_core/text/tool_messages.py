"""Tool calls and their results in a chat, in the form that a chat template takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from foreal_core.errors import ConfigError
from foreal_core.text.call_syntax import HERMES, CallSyntax
from foreal_core.text.json_texts import read_json

Content = Literal["empty", "missing", "none"]
Arguments = Literal["mapping", "text"]
Ids = Literal["own", "short"]
Beside = Literal["together", "apart", "left out"]
Message = dict[str, Any]

# Put before a template, it gives messages with calls and without content the content none: what is
# None itself never reaches a template, transformers leaves it out.
_CONTENT_NONE: Final = (
    "{%- set form = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message.tool_calls is defined and message.content is not defined -%}"
    "{%- set message = dict(message, content=none) -%}{%- endif -%}"
    "{%- set form.messages = form.messages + [message] -%}{%- endfor -%}"
    "{%- set messages = form.messages -%}"
)
# The ids that Mistral's templates take.
_SHORT_ID: Final = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How messages with tool calls, and with their results, are given to a template.

    Attributes:
        arguments: of a call, as a mapping or as JSON text.
        ids: of calls, as they are or of nine letters and digits.
        content: of a message that holds nothing but calls: "", none or no such key.
        result_role: of a message with a call's result.
        beside: a text beside calls stands in one message with them, in a message of its own before
            them, or nowhere.
        several: one message may hold several calls; else each has its own, its result after it.
        syntax: what the template makes of the calls.
    """

    arguments: Arguments = "mapping"
    ids: Ids = "own"
    content: Content = "empty"
    result_role: str = "tool"
    beside: Beside = "together"
    several: bool = True
    syntax: CallSyntax = HERMES

    @property
    def prelude(self) -> str:
        """What is to stand before the template for this form."""
        return _CONTENT_NONE if self.content == "none" else ""


def in_form(messages: Sequence[Mapping[str, Any]], form: ToolForm) -> list[Message]:
    """The messages with their tool calls and results in this form.

    Raises:
        ConfigError: a tool call has no name.
    """
    known = _with_ids(messages, form.ids)
    arranged: list[Message] = []
    index = 0
    while index < len(known):
        message = known[index]
        index += 1
        if message["role"] == "tool":
            arranged.append({**message, "role": form.result_role})
        elif not message.get("tool_calls"):
            arranged.append(message)
        elif form.several:
            arranged += _calling(message, message["tool_calls"], form)
        else:
            results: list[Message] = []
            while index < len(known) and known[index]["role"] == "tool":
                results.append({**known[index], "role": form.result_role})
                index += 1
            arranged += _one_by_one(message, results, form)
    return arranged


def _with_ids(messages: Sequence[Mapping[str, Any]], ids: Ids) -> list[Message]:
    """The messages with calls in one shape; results name their calls, by order if they did not."""
    known: list[Message] = []
    unanswered: list[str] = []
    for index, given in enumerate(messages):
        message = dict(given)
        known.append(message)
        if message.get("tool_calls"):
            calls = message["tool_calls"] = [
                _call(call, f"messages[{index}].tool_calls[{place}]", ids)
                for place, call in enumerate(message["tool_calls"])
            ]
            unanswered = [call["id"] for call in calls]
        elif message["role"] == "tool":
            if message.get("tool_call_id"):
                message["tool_call_id"] = _id(message["tool_call_id"], ids)
            elif unanswered:
                message["tool_call_id"] = unanswered[0]
            if message.get("tool_call_id") in unanswered:
                unanswered.remove(message["tool_call_id"])
    return known


def _call(call: Any, place: str, ids: Ids) -> dict[str, Any]:
    """A call in OpenAI's JSON, its arguments as a mapping where they are JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else call
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f'{place} is {call!r}: it must be a dict with {{"function": {{"name": ..., '
            '"arguments": {...}}}.'
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        with contextlib.suppress(ValueError):  # then it is shown as the model wrote it
            arguments = read_json(arguments)
    return {
        "type": "function",
        "id": _id(call.get("id") or place, ids),
        "function": {"name": name, "arguments": arguments or {}},
    }


def _id(given: Any, ids: Ids) -> str:
    text = str(given)
    if ids == "own" or _SHORT_ID.fullmatch(text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:9]


def _calling(message: Message, calls: Sequence[Message], form: ToolForm) -> list[Message]:
    """A message that holds these calls, after one with its text where that stands apart."""
    text = message.get("content")
    own = {**message, "tool_calls": [_given(call, form) for call in calls]}
    before: list[Message] = []
    if text and form.beside == "apart":
        before = [{name: one for name, one in message.items() if name != "tool_calls"}]
    if not text or form.beside != "together":
        own["content"] = ""
        if form.content != "empty":
            del own["content"]
    return [*before, own]


def _given(call: Message, form: ToolForm) -> Message:
    arguments = call["function"]["arguments"]
    if form.arguments == "mapping" or isinstance(arguments, str):
        return call
    written = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": written}}


def _one_by_one(message: Message, results: list[Message], form: ToolForm) -> list[Message]:
    """Each call in a message of its own, and its result after it."""
    arranged: list[Message] = []
    for call in message["tool_calls"]:
        arranged += _calling(message, [call], form)
        arranged += [one for one in results if one.get("tool_call_id") == call["id"]]
        message = {**message, "content": ""}
    called = {call["id"] for call in message["tool_calls"]}
    return arranged + [one for one in results if one.get("tool_call_id") not in called]
