"""JSON schemas as values: what is a schema in them, and parts of them as schemas of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

# Keywords whose value is a schema, a list of schemas (or one), or schemas by name.
_ONE: Final = frozenset(
    {"additionalProperties", "additionalItems", "contains", "contentSchema", "else", "if", "not"}
    | {"propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"}
)
_SEVERAL: Final = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_NAMED: Final = frozenset(
    {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
)


def mapped(schema: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """The schema with `change` made of every schema in it, the inner ones first; values that it
    names (constants, examples) are no schemas."""
    if not isinstance(schema, Mapping):
        return schema
    parts: dict[str, Any] = {}
    for name, part in schema.items():
        if name in _NAMED and isinstance(part, Mapping):
            parts[name] = {key: mapped(one, change) for key, one in part.items()}
        elif name in _SEVERAL and isinstance(part, list):
            parts[name] = [mapped(one, change) for one in part]
        else:
            parts[name] = mapped(part, change) if name in _ONE | _SEVERAL else part
    return change(parts)


def moved(schema: Any, place: str) -> Any:
    """The schema with its references to itself ("#/$defs/...") as they read inside another one.

    Args:
        schema: a JSON schema.
        place: where it comes to stand there, as a JSON pointer.
    """

    def change(part: dict[str, Any]) -> dict[str, Any]:
        reference = part.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return part
        return {**part, "$ref": f"#{place}{reference[1:]}"}

    return mapped(schema, change)


def part_of(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The part of a schema at a place (a JSON pointer), with all that it may refer to."""
    if not place:
        return dict(schema)
    return {"$defs": {"whole": moved(schema, "/$defs/whole")}, "$ref": f"#/$defs/whole{place}"}


def inside(schema: Any, *, definitions: bool = False) -> Iterator[Any]:
    """Every schema in a schema, itself first; those that it only defines, if they are asked for."""
    yield schema
    if not isinstance(schema, Mapping):
        return
    for name, part in schema.items():
        if name in ("$defs", "definitions") and not definitions:
            continue
        if name in _NAMED and isinstance(part, Mapping):
            parts = list(part.values())
        elif name in _SEVERAL and isinstance(part, list):
            parts = part
        else:
            parts = [part] if name in _ONE | _SEVERAL else []
        for one in parts:
            yield from inside(one, definitions=definitions)


def resolved(root: Any, reference: str) -> Any:
    """The schema that a reference of a schema to itself ("#/$defs/name") leads to.

    Raises:
        LookupError: it leads nowhere, or out of this schema.
    """
    if reference != "#" and not reference.startswith("#/"):
        raise LookupError(reference)
    found = root
    for step in reference.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        found = found[int(name) if isinstance(found, list) else name]
    return found
