"""The grammar of tool calls as a chat template writes them, in llguidance's Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foreal_core.errors import ConfigError
from foreal_core.grammar.schemas import part_of
from foreal_core.text.call_syntax import CallSyntax

_ANY_TEXT = "/(?s:.*)/"


@dataclass(frozen=True)
class CallGrammar:
    """Writes the rules of tool calls.

    Args:
        syntax: how calls are written.
        special: ids of the tokens among its marks that no text spells, by name.
        json_rule: makes the right-hand side of a rule of a JSON schema.
    """

    syntax: CallSyntax
    special: Mapping[str, int]
    json_rule: Callable[[Mapping[str, Any]], str]

    def rules(self, name: str, schema: Mapping[str, Any], *, required: bool) -> list[str]:
        """The rules of an answer that calls tools, the first of them called `name`.

        Args:
            schema: of a call, an object of "name" and "arguments", or of an array of calls.
            required: the answer is calls and nothing else; else any text, with calls in it or
                without.

        Raises:
            ConfigError: the syntax needs the calls' names, and the schema does not tell them.
        """
        several = schema.get("type") == "array"
        place = "/items" if several else ""
        closed = f"{name}_call {self._text(self.syntax.closing)}"
        more = ""
        if several and self.syntax.several:
            opened = self._text(self.syntax.separator + self.syntax.opening)
            more = f"({opened} {closed})*"
        rest = f"{closed} {more} {self._text(self.syntax.end)}"
        calls = self._call_rules(f"{name}_call", schema, place)
        if required:
            return [f"{name}: {self._text(self._lead)} {rest}", *calls]
        return [*self._among_text(name, rest, "*" if several else "?"), *calls]

    @property
    def _lead(self) -> str:
        return self.syntax.begin + self.syntax.opening

    def _among_text(self, name: str, rest: str, times: str) -> list[str]:
        """The rules of any text in which calls stand; `rest` is what follows their first mark."""
        free = f"{name.upper()}_TEXT"
        marks = [mark for mark in (*self.syntax.layout_marks[:1], self.syntax.start_mark) if mark]
        if not marks:  # a call is an answer that begins with a brace
            opened = self._text(self._lead)
            return [f"{name}: {free} | {opened} {rest}", rf"{free}: /([^{{\s](?s:.*))?/"]
        # Also where a token of its own is the mark: a reader sees no difference.
        without = "".join(f" & ~/(?s:.*){_escaped(mark)}(?s:.*)/" for mark in marks)
        lead = self._lead
        before, first = free, lead
        if (mark := min(marks, key=lead.index)) not in self.special:
            before, first = f"{name}_marked", lead[lead.index(mark) + len(mark) :]
        rules = [
            f"{name}: ({before} {self._text(first)} {rest}){times} {free}",
            f"{free}: {_ANY_TEXT}{without}",
        ]
        if before != free:
            rules.append(f"{before}[suffix={json.dumps(mark, ensure_ascii=False)}]: {_ANY_TEXT}")
        return rules

    def _call_rules(self, name: str, schema: Mapping[str, Any], place: str) -> list[str]:
        """The rules of one call, without its marks."""
        syntax = self.syntax
        if (syntax.middle, syntax.name_key, syntax.arguments_key) == (None, "name", "arguments"):
            return [f"{name}: {self.json_rule(part_of(schema, place))}"]
        ways, rules = [], []
        for index, (called, arguments) in enumerate(_named(schema, place)):
            way = f"{name}_{index}"
            ways.append(way)
            if syntax.middle is not None:
                written = self._text(called + syntax.middle)
                rules.append(f"{way}: {written} {way}_json")
                rules.append(f"{way}_json: {self.json_rule(arguments)}")
                continue
            root = {name: part for name, part in arguments.items() if name == "$defs"}
            whole = {
                "type": "object",
                "properties": {syntax.name_key: {"const": called}, syntax.arguments_key: arguments},
                "required": [syntax.name_key, syntax.arguments_key],
                "additionalProperties": False,
            }
            rules.append(f"{way}: {self.json_rule({**whole, **root})}")
        return [f"{name}: {' | '.join(ways)}", *rules]

    def _text(self, text: str) -> str:
        """A text as tokens spell it, special ones by their ids."""
        marks = "|".join(map(re.escape, self.special))
        parts = re.split(f"({marks})", text) if marks else [text]
        return " ".join(
            f"<[{self.special[part]}]>"
            if part in self.special
            else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )


def _named(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, schema of the arguments) of every call that a schema allows."""
    node = schema["items"] if place else schema
    variants = node.get("anyOf") if isinstance(node.get("anyOf"), list) else None
    for index, call in enumerate(variants or [node]):
        at = f"{place}/anyOf/{index}" if variants else place
        properties = call.get("properties") if isinstance(call, Mapping) else None
        properties = properties if isinstance(properties, Mapping) else {}
        name = properties.get("name")
        name = name if isinstance(name, Mapping) else {}
        names = [name["const"]] if "const" in name else name.get("enum")
        if not names or not all(isinstance(one, str) for one in names):
            raise ConfigError(
                'call_schema is not allowed: the chat template writes no {"name": ..., '
                '"arguments": ...}, so each call must be an object whose property "name" has a '
                '"const" or an "enum" of strings.'
            )
        known = "arguments" in properties
        arguments = part_of(schema, f"{at}/properties/arguments") if known else {"type": "object"}
        for one in names:
            yield one, arguments


def _escaped(text: str) -> str:
    """A text in a regular expression of Lark."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")
