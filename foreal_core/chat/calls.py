"""Tool calls as models write them, read into names and arguments."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import regex

from foreal_core.text.call_syntax import CallSyntax
from foreal_core.text.json_texts import read_json, read_json_at

_STRING: Final = r'"((?:[^"\\]|\\.)*)"'
_BETWEEN_VALUES: Final = re.compile(r"[\s,;]*")


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"


@dataclass(frozen=True)
class ToolCall:
    """A call that a model wrote."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=_new_id)


@dataclass(frozen=True)
class BrokenCall:
    """What was to be a call and is none: its name if it has one, the text from the opening mark on,
    and what is wrong."""

    name: str | None
    text: str
    error: str
    id: str = field(default_factory=_new_id)


@dataclass(frozen=True)
class OpenCall:
    """A call that is being written: its name, and its arguments as far as they go."""

    name: str
    arguments: str


class _NoCallError(Exception):
    """What is wrong with a text that was to be a call."""


def read_calls(body: str, syntax: CallSyntax) -> list[ToolCall | BrokenCall]:
    """The calls in a text between a start and a stop mark: one, or a list of them; what cannot be
    read as a whole is one broken call."""
    text = syntax.start_mark + body
    try:
        found = list(_given(body, syntax))
    except _NoCallError as error:
        before, again, rest = body.partition(syntax.start_mark or body)
        if again and rest:
            text, problem = syntax.start_mark + before.rstrip(), "another call begins inside it"
            broken = BrokenCall(
                _name_in(before, syntax), text, f"the tool call has no end: {problem}"
            )
            return [broken, *read_calls(rest.lstrip(), syntax)]
        return [BrokenCall(_name_in(body, syntax), text, str(error))]
    calls: list[ToolCall | BrokenCall] = []
    for given in found:
        try:
            calls.append(_checked(given, syntax))
        except _NoCallError as error:
            name = given.get("name") if isinstance(given, dict) else None
            own = text if len(found) == 1 else syntax.start_mark + json.dumps(given)
            calls.append(
                BrokenCall(name if isinstance(name, str) and name else None, own, str(error))
            )
    return calls


def cut_call(body: str, syntax: CallSyntax) -> BrokenCall:
    """The call of a text that ended inside it."""
    text = syntax.start_mark + body
    return BrokenCall(_name_in(body, syntax), text, "the text ended inside the tool call")


def open_call(body: str, syntax: CallSyntax) -> OpenCall | None:
    """What is written of a call that has not ended; None while its arguments have not begun."""
    if syntax.middle is not None:
        name, begun, arguments = body.partition(syntax.middle.strip())
        return OpenCall(name.strip(), arguments) if begun else None
    start = call_start(syntax).match(body)
    return OpenCall(json.loads(f'"{start[1]}"'), body[start.end() :]) if start else None


def call_start(syntax: CallSyntax) -> regex.Pattern[str]:
    """What a call in JSON begins with, up to its arguments; the group is its name."""
    names, keys = {syntax.name_key, "name"}, {syntax.arguments_key, "arguments", "parameters"}
    one_of = "|".join
    return regex.compile(
        rf'\s*\[?\s*\{{\s*"(?:{one_of(sorted(names))})"\s*:\s*{_STRING}\s*,'
        rf'\s*"(?:{one_of(sorted(keys))})"\s*:\s*'
    )


class JsonEnd:
    """Where the first object or list of a growing text ends; looks at every character once."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._quoted = self._escaped = False

    def find(self, text: str, start: int) -> int:
        """The place after its last bracket; -1 where that is not there yet.

        Args:
            text: what was there at the last call, and more.
            start: where to begin, the same in every call.
        """
        for at in range(max(self._at, start), len(text)):
            character = text[at]
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = self._quoted
            elif character == '"':
                self._quoted = not self._quoted
            elif not self._quoted and character in "{[":
                self._depth += 1
            elif not self._quoted and character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        self._at = len(text)
        return -1


def _given(body: str, syntax: CallSyntax) -> Iterator[Any]:
    """The calls of a text as they are given, not checked."""
    if syntax.middle is not None:
        name, found, arguments = body.partition(syntax.middle.strip())
        if found:
            yield {"name": name.strip(), "arguments": _json(arguments, "the arguments are no JSON")}
            return
    values = list(_values(body))
    for value in values:
        yield from value if isinstance(value, list) else [value]
    if not any(values):
        raise _NoCallError("there is no call in it")


def _values(body: str) -> Iterator[Any]:
    """The JSON values that stand one after the other in a text. An object may have its braces
    twice: so does the one that Qwen2.5-Coder's template shows as an example."""
    at = _BETWEEN_VALUES.match(body).end()  # type: ignore[union-attr]  # it matches nothing, too
    while at < len(body):
        doubled = body.startswith("{{", at)
        try:
            value, at = read_json_at(body, at + doubled)
        except ValueError as error:
            raise _NoCallError(f"the tool call is no JSON: {error}") from error
        if doubled:
            if not body[at:].lstrip().startswith("}"):
                raise _NoCallError("the tool call is no JSON: of two braces one is not closed")
            at = body.index("}", at) + 1
        yield value
        at = _BETWEEN_VALUES.match(body, at).end()  # type: ignore[union-attr]


def _json(text: str, problem: str) -> Any:
    try:
        return read_json(text, strict=False)
    except ValueError as error:
        raise _NoCallError(f"{problem}: {error}") from error


def _checked(given: Any, syntax: CallSyntax) -> ToolCall:
    if isinstance(given, dict) and isinstance(given.get("function"), dict):
        given = given["function"]  # as in OpenAI's JSON
    if not isinstance(given, dict):
        raise _NoCallError('the tool call is no object with a "name"')
    name = given.get("name", given.get(syntax.name_key))
    if not isinstance(name, str) or not name:
        raise _NoCallError('the tool call is no object with a "name"')
    keys = ("arguments", "parameters", syntax.arguments_key)
    arguments = next((given[key] for key in keys if key in given), None)
    if arguments in (None, ""):  # of a function that takes none
        arguments = {}
    if isinstance(arguments, str):  # some models quote the object once more
        arguments = _json(arguments, "the arguments are no JSON")
    if not isinstance(arguments, dict):
        raise _NoCallError("the arguments are no object")
    return ToolCall(name, arguments)


def _name_in(body: str, syntax: CallSyntax) -> str | None:
    """The name in a call that cannot be read."""
    if syntax.middle is not None:
        name, found, _ = body.partition(syntax.middle.strip())
        return name.strip() or None if found else None
    found_name = re.search(rf'"(?:{syntax.name_key}|name)"\s*:\s*{_STRING}', body)
    return found_name[1] if found_name and found_name[1] else None
