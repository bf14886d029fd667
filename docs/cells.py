"""Committed records, and Markdown tables of their cells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def load(record: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / record).read_text(encoding="utf-8"))
    return loaded


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def table(head: Any, rows: Any) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


def prose(text: str) -> str:
    """Plain words for a Markdown table: what is quoted becomes code."""
    return re.sub(r'"([^"]*)"', r'`"\1"`', text).replace("|", "\\|")
