"""What a terminal shows: the text with its authors, and the cost table."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from played_command import EVENTS, TEXT, generation
from rich.console import Console

from foreal_core.cli import terminal
from foreal_core.events import TokenEvent


def _shown(**options: Any) -> str:
    out = io.StringIO()
    live = terminal.LiveText(Console(file=out, **options))
    live.start()
    for event in EVENTS:
        live.write(event)
    live.end()
    return out.getvalue()


def test_a_terminal_shows_authors_in_colours() -> None:
    shown = _shown(force_terminal=True, color_system="truecolor", no_color=False)
    assert "[L]" not in shown
    assert "\x1b[1;38;2;0;114;178mLet me\x1b[0m" in shown
    assert "\x1b[38;2;213;94;0m 8 + 3\x1b[0m" in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).endswith(TEXT + "\n")


@pytest.mark.parametrize(
    "options", [{"force_terminal": True, "no_color": True}, {"force_terminal": False}]
)
def test_without_colours_marks_say_who_wrote(options: dict[str, bool]) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", _shown(**options))
    assert shown == "[L] leader   [D] draft\n[L]Let me add:[D] 8 + 3 = 11.\n\n"


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    live = terminal.LiveText(Console(file=out, force_terminal=False))
    live.write(TokenEvent(0, 0, "a\x1b[2J\tb\x9b1m[bold]\n", "leader", 0))
    assert out.getvalue() == "[L]a[2J\tb1m[bold]\n"


def test_the_cost_table_shows_all_three_counts() -> None:
    record = generation().cost.to_dict()
    record["flops"] = {"leader": 3e9, "draft": 1.5e9, "total": 4.5e9, "leader_only": 4e9}
    record["weight_bytes"] = {"leader": 2e6, "draft": 1e6, "total": 3e6, "leader_only": 6e6}
    record["flops_written"] = {"leader": 0, "draft": 0, "total": 0, "leader_only": 0}
    record["seconds"]["first_token"] = None
    out = io.StringIO()
    for part in terminal.cost_view(record):
        Console(file=out, width=100).print(part)
    rows = dict(re.findall(r"^ *([a-zA-Z ]+?)  +(.+?) *$", out.getvalue(), re.MULTILINE))
    assert re.split(r"  +", rows["computed FLOPs"]) == [
        *("3.00 G", "1.50 G", "4.50 G", "4.00 G", "1.12")
    ]
    assert rows["weight bytes read"].endswith(" 0.50")
    assert rows["written FLOPs"].endswith(" -")
    assert "paper's count" in out.getvalue()
    assert "first token -" in out.getvalue()


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_label_and_no_number_is_lost_where_it_is_narrow(width: int) -> None:
    out = io.StringIO()
    for part in terminal.cost_view(generation().cost.to_dict()):
        Console(file=out, width=width).print(part)
    shown = out.getvalue()
    assert "\u2026" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for word in ("written", "prefill", "catch-up", "discarded"):
        assert word in shown
