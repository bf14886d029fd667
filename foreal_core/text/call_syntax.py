"""How a model writes tool calls, read off what its chat template makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# Where the JSON begins in what stands before a call, and what ends it in what stands after.
_JSON_START: Final = re.compile(r"\{|\[(?=[\s{\[\"]|$)")
_JSON_END: Final = " \r\n\t]},"
# A tag counts as one letter where two texts are compared: half a tag marks nothing.
_UNITS: Final = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]|.", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSyntax:
    """The text of a message's tool calls, as a template writes them and a model learnt to:

        begin, call, (separator, call)*, end

    A call is `opening {name_key: NAME, arguments_key: ARGUMENTS} closing`, or, where `middle` is
    given, `opening NAME middle ARGUMENTS closing`. The defaults are Hermes' and Qwen's.

    Attributes:
        several: a message may hold several calls.
    """

    begin: str = ""
    opening: str = "<tool_call>\n"
    middle: str | None = None
    closing: str = "\n</tool_call>"
    separator: str = "\n"
    end: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    several: bool = True

    @property
    def start_mark(self) -> str:
        """What tells a reader that a call begins; "" where nothing does but the call itself."""
        return _mark_before(self.opening) or _mark_before(self.begin)

    @property
    def stop_mark(self) -> str:
        """What tells a reader that it ended; "" where that is the end of its JSON."""
        return _mark_after(self.closing if _mark_before(self.opening) else self.end)

    @property
    def layout_marks(self) -> tuple[str, ...]:
        """Marks around all calls, which say nothing to a reader."""
        if not _mark_before(self.opening):
            return ()
        return tuple(filter(None, (_mark_before(self.begin), _mark_after(self.end))))

    @property
    def marks(self) -> str:
        """All that stands around a call's name and arguments, in one text."""
        return "".join((self.start_mark, self.stop_mark, *self.layout_marks, self.middle or ""))

    def written(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """The text of a message's calls, by name and arguments."""
        texts = []
        for name, arguments in calls:
            if self.middle is None:
                body = json.dumps({self.name_key: name, self.arguments_key: arguments})
            else:
                body = name + self.middle + json.dumps(arguments)
            texts.append(self.opening + body + self.closing)
        return self.begin + self.separator.join(texts) + self.end


HERMES: Final = CallSyntax()


@dataclass(frozen=True, slots=True)
class ShownCall:
    """Where a call stands in a text, and how it is written there.

    Attributes:
        start, end: of its JSON object, or from its name to the end of its arguments.
        middle, name_key, arguments_key: see `CallSyntax`.
    """

    start: int
    end: int
    middle: str | None
    name_key: str
    arguments_key: str


def find_call(text: str, name: str, arguments: Mapping[str, Any]) -> ShownCall | None:
    """The call in a text that shows it whole, its arguments as JSON; None where none does."""
    for start, end, value in _objects(text):
        if value == arguments:
            named = text.rfind(name, 0, start)
            if named >= 0:
                return ShownCall(named, end, text[named + len(name) : start], "", "")
        keys = [[key for key, one in value.items() if one == what] for what in (name, arguments)]
        if all(keys):
            return ShownCall(start, end, None, keys[0][0], keys[1][0])
    return None


def read_syntax(written: str, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> CallSyntax | None:
    """The syntax of a text that holds nothing but these calls, one or two.

    Args:
        written: a message's calls as a template writes them.
        calls: name and arguments of each.

    Returns None where they are not found, or nothing would tell a reader that a call begins.
    """
    found = [find_call(written, name, arguments) for name, arguments in calls]
    first, last = found[0], found[-1]
    if first is None or last is None or first.middle != last.middle:
        return None
    before, after = written[: first.start], written[last.end :]
    begin = end = separator = ""
    opening, closing = before, after
    if several := len(calls) > 1:
        between = written[first.end : last.start]
        opening = _common_end(before, between)
        rest = between.removesuffix(opening)
        closing = _common_start(rest, after)
        separator = rest.removeprefix(closing)
        begin, end = before.removesuffix(opening), after.removeprefix(closing)
    syntax = CallSyntax(
        begin=begin,
        opening=opening,
        middle=first.middle,
        closing=closing,
        separator=separator,
        end=end,
        name_key=first.name_key,
        arguments_key=first.arguments_key,
        several=several,
    )
    return None if first.middle is not None and not syntax.start_mark else syntax


def _mark_before(text: str) -> str:
    """What marks the start, of a text that stands before a call."""
    return _JSON_START.split(text, maxsplit=1)[0].strip()


def _mark_after(text: str) -> str:
    """What marks the end, of a text that stands after a call."""
    return text.lstrip(_JSON_END).rstrip()


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the common start."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _common_start(one: str, other: str) -> str:
    units = _UNITS.findall(one)
    return "".join(units[: common_length(units, _UNITS.findall(other))])


def _common_end(one: str, other: str) -> str:
    units = _UNITS.findall(one)
    length = common_length(units[::-1], _UNITS.findall(other)[::-1])
    return "".join(units[len(units) - length :])


def _objects(text: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(start, end, value) of every JSON object in a text, outer ones before inner ones."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            pass
        else:
            yield start, end, value
        start = text.find("{", start + 1)
