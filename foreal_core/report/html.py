"""A generation as HTML: who wrote which word, which sentences were led, what it cost.

Authors differ by colour (Okabe-Ito, safe for colour-blind readers) and by underline, so the page
also reads in black and white. All text of the models is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
.foreal{font:15px/1.6 system-ui,sans-serif;max-width:60em;color:#222;background:#fff;padding:1em}
.foreal .text{white-space:pre-wrap;overflow-wrap:anywhere}
.foreal .leader{color:#0072b2;text-decoration:underline;text-underline-offset:3px}
.foreal .draft{color:#a04d00}
.foreal table{border-collapse:collapse;margin-top:1em}
.foreal td,.foreal th{padding:.1em .8em;text-align:right;border-bottom:1px solid #ddd}
.foreal th:first-child{text-align:left}
"""
_COUNTS = (
    ("written FLOPs (the paper's count)", "flops_written"),
    ("computed FLOPs", "flops"),
    ("weight bytes read", "weight_bytes"),
)


def trace(pieces: Sequence[tuple[str, str, str]], cost: Mapping[str, Any]) -> str:
    """A self-contained fragment.

    Args:
        pieces: (text, author, what a reader sees on hovering), in order.
        cost: the cost record.
    """
    text = "".join(
        f'<span class="{escape(author)}" title="{escape(hover)}">{escape(text)}</span>'
        for text, author, hover in pieces
    )
    rows = "".join(_row(name, cost[key]) for name, key in _COUNTS)
    return (
        f"<style>{_STYLE}</style>"
        '<div class="foreal"><p><span class="leader">leader (underlined)</span> · '
        '<span class="draft">draft</span></p>'
        f'<div class="text">{text}</div>'
        "<table><tr><th></th><th>leader</th><th>draft</th><th>together</th>"
        "<th>leader alone, same text</th><th>ratio</th></tr>"
        f"{rows}</table>"
        f"<p>{cost['completion_tokens']} tokens ({cost['leader_tokens']} by the leader), "
        f"{cost['sentences']} sentences ({cost['led_sentences']} led), "
        f"{cost['handoffs']} hand-offs, {cost['seconds']['total']:.2f} s</p></div>"
    )


def _row(name: str, count: Mapping[str, float]) -> str:
    ratio = f"{count['total'] / count['leader_only']:.2f}" if count["leader_only"] else "–"
    values = "".join(
        f"<td>{count[key]:.3g}</td>" for key in ("leader", "draft", "total", "leader_only")
    )
    return f"<tr><th>{escape(name)}</th>{values}<td>{ratio}</td></tr>"
