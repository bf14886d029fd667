"""JSON schemas as the grammar holds them: what llguidance would not hold is put so that it does, or
refused by name. `docs/json-schema.md` shows what is held."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from foreal_core.grammar.schemas import inside, mapped, resolved

# The spacing of json.dumps, which models have seen most. A name of a property may not be spelled
# with \u escapes: llguidance would not know it again, and let it hold anything.
_WRITTEN: Final = {
    "whitespace_flexible": False,
    "key_separator": ": ",
    "item_separator": ", ",
    "json_allowed_escapes": '"\\bfnrt',
}
# The whole numbers that every reader of JSON holds exactly (RFC 8259, section 6).
_MOST: Final = 2**53 - 1

# Dates that exist, in the years that Python knows, and times as RFC 3339 writes them, without leap
# seconds. llguidance takes 29 February in every year, and more.
_YEAR: Final = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR: Final = (
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
)
_DATE: Final = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME: Final = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_FORMATS: Final = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
}

# Keywords that say nothing, by their value or by what stands beside them.
_SAYS_NOTHING: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], bool]]] = {
    "uniqueItems": lambda value, beside: value is False,
    "minContains": lambda value, beside: "contains" not in beside,
    "maxContains": lambda value, beside: "contains" not in beside,
    "if": lambda value, beside: "then" not in beside and "else" not in beside,
    "then": lambda value, beside: "if" not in beside,
    "else": lambda value, beside: "if" not in beside,
    "not": lambda value, beside: value is False,
    "propertyNames": lambda value, beside: value is True or value == {},
    "dependentRequired": lambda value, beside: value == {},
    "dependentSchemas": lambda value, beside: value == {},
    "unevaluatedItems": lambda value, beside: value is True or value == {},
    "unevaluatedProperties": lambda value, beside: value is True or value == {},
}


class UnheldSchemaError(Exception):
    """What of a schema no grammar here can hold."""


def described(schema: Mapping[str, Any], *, bounded: bool) -> dict[str, Any]:
    """The schema as llguidance holds it.

    Args:
        schema: a JSON schema.
        bounded: numbers that have no bounds get some.

    Raises:
        UnheldSchemaError: it asks for what cannot be held; the message names the keyword.
    """
    ending = _ending_references(schema)
    for part in inside(schema):
        _refuse_repeated_names(part)
        _refuse_control_characters(part)
        if not _ends(part, ending):
            raise UnheldSchemaError(
                f"$ref {min(_references(part) - ending)!r} leads back to itself in such a way that "
                "no value could ever end."
            )
    held = mapped(schema, lambda part: _held(part, bounded=bounded))
    return {**held, "x-guidance": _WRITTEN}


def _held(schema: dict[str, Any], *, bounded: bool) -> dict[str, Any]:
    held = {
        name: value
        for name, value in schema.items()
        if name != "x-guidance"  # llguidance's own: it could allow endless white space
        and not (name in _SAYS_NOTHING and _SAYS_NOTHING[name](value, schema))
    }
    if (pattern := _FORMATS.get(str(held.get("format")))) is not None:
        del held["format"]
        others = held.get("allOf", [])
        held["allOf"] = [*others, {"pattern": pattern}] if isinstance(others, list) else others
    return _bounded(held) if bounded else held


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with bounds for numbers that have none: a weak model would write digits for ever,
    and Python's `json` refuses integers of more than 4300."""
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not {"integer", "number"} & {kind for kind in kinds if isinstance(kind, str)}:
        return schema
    bounds = {name: schema.get(name, 0) for name in ("minimum", "maximum")}
    if not all(isinstance(bound, int | float) for bound in bounds.values()):
        return schema  # llguidance says what is wrong
    bounded = dict(schema)
    if "exclusiveMinimum" not in schema:
        bounded.setdefault("minimum", min(-_MOST, bounds["maximum"]))
    if "exclusiveMaximum" not in schema:
        bounded.setdefault("maximum", max(_MOST, bounds["minimum"]))
    return bounded


def _refuse_repeated_names(schema: Any) -> None:
    """Nothing keeps a model from writing a name of its choice twice, and readers count it once."""
    least = schema.get("minProperties") if isinstance(schema, Mapping) else None
    if not isinstance(least, int) or least <= 1:
        return
    required = schema.get("required")
    sure = len(set(required)) if isinstance(required, list) else 0
    properties, others = schema.get("properties"), schema.get("additionalProperties", True)
    named = isinstance(properties, Mapping) and not schema.get("patternProperties")
    if least > sure and not (named and others is False):
        raise UnheldSchemaError(
            f"minProperties={least} counts names of the model's choice, and it could write one "
            'twice: name the properties in "required", or leave minProperties out.'
        )


def _refuse_control_characters(schema: Any) -> None:
    """Only a \\u escape spells them, and those are not written."""
    for name in ("const", "enum"):
        text = json.dumps(schema[name]) if isinstance(schema, Mapping) and name in schema else ""
        if found := re.search(r"(?<!\\)(?:\\\\)*\\u(00[01][0-9a-f])", text):
            raise UnheldSchemaError(f"{name} holds the control character U+{found[1].upper()}.")


def _references(schema: Any) -> set[str]:
    """All references of a schema, and of what it defines."""
    parts = inside(schema, definitions=True)
    found = (part.get("$ref") for part in parts if isinstance(part, Mapping))
    return {one for one in found if isinstance(one, str)}


def _ending_references(root: Any) -> set[str]:
    """References that lead to a schema of which some value ends."""
    targets: dict[str, Any] = {}
    for reference in _references(root):
        try:
            targets[reference] = resolved(root, reference)
        except (LookupError, ValueError, TypeError):
            targets[reference] = True  # llguidance resolves it, or says what is wrong
    ending: set[str] = set()
    grown = True
    while grown:
        more = {one for one in targets.keys() - ending if _ends(targets[one], ending)}
        ending |= more
        grown = bool(more)
    return ending


def _ends(schema: Any, ending: Collection[str]) -> bool:
    """Whether some value of a schema ends, if what these references lead to does and what others
    lead to does not."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return True
    if isinstance(schema.get("$ref"), str) and schema["$ref"] not in ending:
        return False
    for ways in (schema.get("anyOf"), schema.get("oneOf")):
        if isinstance(ways, list) and ways and not any(_ends(way, ending) for way in ways):
            return False
    return all(_ends(part, ending) for part in _needed(schema))


def _needed(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Schemas of values that every value of a schema holds."""
    if isinstance(schema.get("allOf"), list):
        yield from schema["allOf"]
    kind = schema.get("type")
    if kind in ("object", ["object"]) and isinstance(schema.get("required"), list):
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        yield from (properties[name] for name in schema["required"] if name in properties)
    least = schema.get("minItems")
    if kind in ("array", ["array"]) and isinstance(least, int) and least > 0:
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        yield from first[:least]
        if least > len(first):
            yield schema.get("items", True)
