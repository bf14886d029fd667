"""Records and JSON lines on disk: written atomically, errors named by file and line."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foreal_core.errors import ConfigError


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, lists of numbers on one line each."""
    text = json.dumps(record, indent=1)
    # JSON strings hold no bare newline, so nothing in them is touched.
    text = re.sub(r"\[\n\s*([^\[\]{}\"]*?)\n\s*\]", _on_one_line, text)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """Reads a record of the given kind.

    Raises:
        ConfigError: the file holds no record of that kind.
        OSError: it cannot be read.
    """
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON record ({error}). Choose another file.") from error
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise ConfigError(f"{path} is no record of the kind {kind!r}. Choose another file.")
    return record


def digest(content: Any) -> str:
    """16 hex digits that change with anything in JSON-safe content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def refuse_other(path: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError where a file's setup differs from the present one."""
    names = {*kept, *wanted}
    if other := sorted(name for name in names if kept.get(name) != wanted.get(name)):
        raise ConfigError(
            f"{path} belongs to another run: it differs in {', '.join(other)}. Choose another "
            "file, or remove this one to begin anew."
        )


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number from 1, object) of each line that is not blank.

    Raises:
        ConfigError: a line holds no JSON object; it names file and line.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:  # broken JSON, or bytes that are no UTF-8
                raise ConfigError(
                    f"{path}, line {number}: not valid JSON ({error}). Correct or remove the line."
                ) from error
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{path}, line {number}: a JSON object is needed, not {type(value).__name__}."
                )
            yield number, value


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r",\n\s*", ",", found.group(1)) + "]"
