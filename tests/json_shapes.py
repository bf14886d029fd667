"""Shapes of JSON Schema 2020-12, keyword by keyword: schemas with values that follow them, and
values that do not.

The categories are those of the public JSON-Schema-Test-Suite; the shapes in `data/` are written
anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent / "data" / "json_shapes.jsonl"


@dataclass(frozen=True)
class Shape:
    """A schema and what it says of a few values.

    Attributes:
        keyword: whose shape it is.
        name: what is special about it.
        valid, invalid: values.
        never: texts that read as values and must not be written.
        draft7: the shape is of an older draft than 2020-12.
    """

    keyword: str
    name: str
    schema: dict[str, Any]
    valid: tuple[Any, ...] = ()
    invalid: tuple[Any, ...] = ()
    never: tuple[str, ...] = ()
    draft7: bool = False

    @property
    def title(self) -> str:
        return f"{self.keyword}: {self.name}"


def _shapes() -> list[Shape]:
    lines = _FILE.read_text(encoding="utf-8").split("\n")  # not splitlines: values hold U+2028
    return [Shape(**json.loads(line)) for line in lines if line]


SHAPES = _shapes()
