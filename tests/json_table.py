"""What becomes of each shape of JSON Schema, as a table.

    python tests/json_table.py          writes docs/json-schema.md's table
    python tests/json_table.py --check  only says whether it is up to date

Each shape's schema is given to the grammar. A writer without a model then draws tokens at random
among those that the grammar leaves, and the `jsonschema` package reads what comes of it. The
shape's own values are tried as well: the wrong ones must not be writable, the right ones should be.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
from json_shapes import SHAPES, Shape
from random_writer import factory_of, prompt_ids, tokenizer_with, written

from foreal_core import ConfigError, FoReaLConfig

PAGE = Path(__file__).parents[1] / "docs" / "json-schema.md"
START, END = "<!-- table: python tests/json_table.py -->\n", "<!-- /table -->"
HEAD = ("| keyword | shape | schema | |", "|---|---|---|---|")
SEEDS = range(16)
_MOST_TOKENS = 120

# Formats that the jsonschema package reads only with further packages installed.
CHECKER = jsonschema.FormatChecker()


@CHECKER.checks("date-time", ValueError)
def _is_date_time(value: object) -> bool:
    if isinstance(value, str):
        datetime.fromisoformat(value)
        return "T" in value and bool(re.search(r"(Z|[+-]\d\d:\d\d)$", value))
    return True


@CHECKER.checks("time", ValueError)
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or _is_date_time(f"2024-01-01T{value}")


@CHECKER.checks("date", ValueError)
def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(date.fromisoformat(value))


@CHECKER.checks("duration")
def _is_duration(value: object) -> bool:
    day = r"(\d+D|\d+M(\d+D)?|\d+Y(\d+M(\d+D)?)?)"
    time = r"T(\d+S|\d+M(\d+S)?|\d+H(\d+M(\d+S)?)?)"
    form = rf"P({day}({time})?|{time}|\d+W)"
    return not isinstance(value, str) or bool(re.fullmatch(form, value))


@CHECKER.checks("hostname")
def _is_hostname(value: object) -> bool:
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    whole = rf"{label}(\.{label})*"
    return not isinstance(value, str) or (len(value) < 254 and bool(re.fullmatch(whole, value)))


@CHECKER.checks("uri")
def _is_uri(value: object) -> bool:
    letter = r"([A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})"
    whole = rf"[A-Za-z][A-Za-z0-9+.-]*:{letter}*(#{letter}*)?"
    return not isinstance(value, str) or bool(re.fullmatch(whole, value))


@CHECKER.checks("email")
def _is_email(value: object) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"[^@\s]+@[^@\s]+", value))


def validator_of(shape: Shape) -> Any:
    """Reads values as the shape's schema wants them, decimals exactly."""
    kind = jsonschema.Draft7Validator if shape.draft7 else jsonschema.Draft202012Validator
    return kind(_exact(shape.schema), format_checker=CHECKER)


def _exact(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_float=Decimal)


def faults(shape: Shape, seeds: Sequence[int]) -> Iterator[str]:
    """What the grammar of a shape allows and should not.

    Raises:
        ConfigError: the schema is refused.
    """
    config = FoReaLConfig(json_schema=shape.schema, max_new_tokens=_MOST_TOKENS)
    validator, tokenizer = validator_of(shape), tokenizer_with()
    yield from (f"takes {value!r}" for value in shape.invalid if _takes(config, _text(value)))
    yield from (f"takes {text!r}" for text in shape.never if _takes(config, text))
    for seed in seeds:
        text = tokenizer.decode(written(config, seed))
        try:
            value = _exact(json.loads(text))
        except ValueError:
            yield f"wrote {text!r}, no JSON"
        else:
            if not validator.is_valid(value):
                yield f"wrote {text!r}"


def left_out(shape: Shape) -> list[Any]:
    """The shape's valid values that cannot be written."""
    config = FoReaLConfig(json_schema=shape.schema, max_new_tokens=_MOST_TOKENS)
    return [value for value in shape.valid if not _takes(config, _text(value))]


def verdict(shape: Shape, seeds: Sequence[int]) -> str:
    """ "held", with what it leaves out, or "refused", with the reason.

    Raises:
        AssertionError: neither.
    """
    try:
        wrong = list(faults(shape, seeds))
    except ConfigError as error:
        reason = str(error).removeprefix("json_schema is not allowed: ")
        return f"refused: {reason}"
    assert not wrong, f"{shape.title}: {wrong[:3]}"
    narrower = ", ".join(f"`{_text(value)}`" for value in left_out(shape))
    return f"held; never {narrower}" if narrower else "held"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _takes(config: FoReaLConfig, text: str) -> bool:
    """Whether the grammar lets this text be the whole answer."""
    tokenizer = tokenizer_with()
    constraint = factory_of(tokenizer).compile(config, prompt_ids(tokenizer), 2000)
    ids = tokenizer.encode(text, add_special_tokens=False)
    for position, token in enumerate([*ids, tokenizer.eos_token_id]):
        allowed = constraint.allowed(ids[:position])
        if allowed is None or not allowed[token]:
            return False
    return True


def row(shape: Shape, seeds: Sequence[int]) -> str:
    """The shape's line of the table."""
    schema = f"`{json.dumps(shape.schema, ensure_ascii=False)}`"
    cells = (f"`{shape.keyword}`", shape.name, schema, verdict(shape, seeds))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table_in(page: str) -> list[str]:
    """The committed table."""
    table = page.partition(START)[2].partition(END)[0]
    return table.split("\n")[:-1]  # not splitlines: values hold U+2028


def main(arguments: Sequence[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    new = [*HEAD, *(row(shape, SEEDS) for shape in SHAPES)]
    if table_in(page) == new:
        print("up to date")
        return 0
    if "--check" in arguments:
        print("out of date")
        return 1
    before, after = page.partition(START)[0], page.partition(END)[2]
    PAGE.write_text(before + START + "\n".join(new) + "\n" + END + after, encoding="utf-8")
    print("written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
