"""Tool calls that stand in an answer without the marks that the chat template puts around them.

Qwen2.5-Coder and other small models are told to mark a call and write its JSON alone, or in a fence
of Markdown. An answer that is nothing else, and calls tools that there are, is meant as a call.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import regex

from foreal_core.chat.calls import JsonEnd, ToolCall, read_calls
from foreal_core.grammar.following import follows
from foreal_core.text.call_syntax import CallSyntax
from foreal_core.text.json_texts import read_json

_FENCE: Final = "```"
_CALL_END: Final = regex.compile(r"\s*(?P<end>\})")
_CALL_END_TWICE: Final = regex.compile(r"\s*(?P<end>\}\})")


@dataclass(frozen=True, slots=True)
class UnmarkedTools:
    """What an answer may call without marks.

    Attributes:
        names: of the tools; none looks for no such calls.
        schema: JSON schema of a call, an object of "name" and "arguments", or of an array of calls;
            an answer whose calls do not follow it is text. None takes any arguments.
    """

    names: tuple[str, ...] = ()
    schema: str | None = None


NO_TOOLS: Final = UnmarkedTools()


class UnmarkedCalls:
    """Reads an answer for as long as it may turn out to be calls and nothing else:

        answer:  (fence | group)+
        fence:   ```word group+ ```
        group:   call | [call, ...]
        call:    {"name": NAME, "arguments": {...}}

    with any white space between. A call has these two keys, in this order, and no other: a tool's
    own description, shown as JSON, has a name and parameters too. The second key may be
    "parameters", and the outer braces may stand twice, as some templates show them.

    Args:
        tools: what may be called.
        syntax: the template's own. Where no mark of its own begins a call, one that stands in no
            fence is left to it.

    Attributes:
        text: all that was read.
        possible: it may still become calls.
    """

    def __init__(self, tools: UnmarkedTools, syntax: CallSyntax) -> None:
        self.text = ""
        self.possible = bool(tools.names) and syntax.middle is None
        self._syntax, self._schema = syntax, tools.schema
        self._calls: list[str] = []
        self._fenced = self._listed = self._doubled = False
        self._at = self._start = 0  # what is settled ends, the call that is read begins
        self._arguments: JsonEnd | None = None
        call = _call_start(tools.names, syntax)
        group = rf"(?P<list>\[\s*)?{call}"
        optional = "?" if syntax.start_mark else ""
        self._outside = regex.compile(rf"\s*(?P<fence>{_FENCE}[\w-]*\s*){optional}{group}")
        self._in_fence = regex.compile(rf"\s*(?:(?P<unfence>{_FENCE})|{group})")
        self._in_list = regex.compile(rf"\s*(?:(?P<unlist>\])|,\s*{call})")
        self._expected = self._outside

    def feed(self, text: str) -> None:
        """Reads on."""
        self.text += text
        while self.possible and self._advance():
            pass

    def calls(self) -> list[str]:
        """The JSON of each call, once the answer is at its end; none where it is anything else."""
        between = self._expected is self._outside and self._arguments is None
        whole = self.possible and between and not self.text[self._at :].strip()
        return self._calls if whole and self._follow() else []

    def _follow(self) -> bool:
        if self._schema is None:
            return True
        schema = json.loads(self._schema)
        values = [
            {"name": call.name, "arguments": call.arguments}
            for text in self._calls
            for call in read_calls(text, self._syntax)
            if isinstance(call, ToolCall)
        ]
        if schema.get("type") == "array":
            return follows(values, schema)
        return all(follows(value, schema) for value in values)

    def _advance(self) -> bool:
        """Moves on by one part; False when more text is needed, or none can help."""
        if self._arguments is not None:
            return self._end_arguments(self._arguments)
        found = self._expected.match(self.text, self._at, partial=True)
        self.possible = found is not None
        if found is None or found.partial:
            return False
        parts = found.groupdict()
        self._at = found.end()
        self._fenced = bool(parts.get("fence")) or (self._fenced and not parts.get("unfence"))
        self._listed = bool(parts.get("list")) or (self._listed and not parts.get("unlist"))
        if parts.get("call"):
            self._start, self._at = found.start("call"), found.end() - 1
            self._doubled = found["call"].startswith("{{")
            self._arguments = JsonEnd()
            return True
        if parts.get("end"):
            self._calls.append(self.text[self._start : self._at])
        around = self._in_fence if self._fenced else self._outside
        self._expected = self._in_list if self._listed else around
        return True

    def _end_arguments(self, reader: JsonEnd) -> bool:
        end = reader.find(self.text, self._at)
        if end < 0:
            return False
        try:
            read_json(self.text[self._at : end], strict=False)
        except ValueError:
            self.possible = False
            return False
        self._at, self._arguments = end, None
        self._expected = _CALL_END_TWICE if self._doubled else _CALL_END
        return True


def _call_start(names: Collection[str], syntax: CallSyntax) -> str:
    """What a call of one of these tools begins with, up to the brace of its arguments."""
    name_keys = {syntax.name_key, "name"}
    argument_keys = {syntax.arguments_key, "arguments", "parameters"}

    def quoted(texts: Collection[str]) -> str:
        spelled = (json.dumps(text, ensure_ascii=False) for text in sorted(texts))
        return "|".join(map(regex.escape, spelled))

    return (
        rf"(?P<call>\{{{{1,2}}\s*(?:{quoted(name_keys)})\s*:\s*(?:{quoted(names)})\s*,"
        rf"\s*(?:{quoted(argument_keys)})\s*:\s*\{{)"
    )
