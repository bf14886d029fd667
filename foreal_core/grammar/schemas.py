"""Parts of JSON schemas, as schemas of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def moved(schema: Any, place: str) -> Any:
    """The schema with its references to itself ("#/$defs/...") as they read inside another one.

    Args:
        schema: a JSON schema.
        place: where it comes to stand there, as a JSON pointer.
    """
    if isinstance(schema, Mapping):
        return {
            name: f"#{place}{part[1:]}"
            if name == "$ref" and isinstance(part, str) and part.startswith("#")
            else moved(part, place)
            for name, part in schema.items()
        }
    return [moved(part, place) for part in schema] if isinstance(schema, list) else schema


def part_of(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The part of a schema at a place (a JSON pointer), with all that it may refer to."""
    if not place:
        return dict(schema)
    return {"$defs": {"whole": moved(schema, "/$defs/whole")}, "$ref": f"#/$defs/whole{place}"}
