"""A generation as HTML: who wrote which word, which sentences were led, where it was handed over.

Authors differ by colour (Okabe-Ito, safe for colour-blind readers), by weight and by underline, so
the page also reads in black and white; marks for led sentences and hand-offs are drawn by the
style sheet, so that a copied text is the text. All that models or users wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from foreal_core.report.numbers import scaled

_STYLE = """
.foreal{font:15px/1.7 system-ui,sans-serif;max-width:60em;color:#222;background:#fff;padding:1em}
.foreal .text,.foreal pre{white-space:pre-wrap;overflow-wrap:anywhere}
.foreal pre{font:inherit;margin:.3em 0;padding-left:1em;border-left:3px solid #ddd}
.foreal .leader{color:#0072b2;font-weight:600;text-decoration:underline 1px;
 text-underline-offset:3px}
.foreal .draft{color:#a04d00}
.foreal .given{color:#555;font-style:italic;text-decoration:underline dotted}
.foreal .sentence{unicode-bidi:isolate}
.foreal .text .sentence:hover{background:#f3f3f3}
.foreal .text span[title]:hover{background:#ffe9a8}
.foreal .led::before{content:"\\25B8";color:#0072b2;font-size:.8em;padding-right:.1em}
.foreal .hand-off::after{content:"\\2502";color:#222;font-weight:400;display:inline-block}
.foreal table{border-collapse:collapse;margin-top:1em}
.foreal td,.foreal th{padding:.1em .8em;text-align:right;border-bottom:1px solid #ddd}
.foreal th:first-child{text-align:left}
.foreal .note{color:#555;font-size:13px}
"""
_KEY = (
    '<p class="note"><span class="leader">leader (bold, underlined)</span> · '
    '<span class="draft">draft</span>{given} · <span class="led">opens a led sentence</span> · '
    '<span class="hand-off">handed over here</span></p>'
)
_GIVEN_KEY = ' · <span class="given">given by the policy (dotted)</span>'
_COUNTS = (
    ("written FLOPs (the paper's count)", "flops_written"),
    ("computed FLOPs", "flops"),
    ("weight bytes read", "weight_bytes"),
)
_SHOWN_SETTINGS = {
    "policy": "policy",
    "lead_count": "n",
    "lead_probability": "p",
    "hit_threshold": "k",
    "temperature": "temperature",
    "seed": "seed",
}
# What no HTML text may hold, or what would steer the reader's program.
_CONTROLS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


def trace(record: Mapping[str, Any]) -> str:
    """A self-contained fragment.

    Args:
        record: of `Generation.to_dict()`.
    """
    given = any(segment["reason"] == "given" for segment in record["segments"])
    cost = record["cost"]
    rows = "".join(_row(name, cost[key]) for name, key in _COUNTS)
    return (
        f'<div class="foreal"><style>{_STYLE}</style>'
        f"{_KEY.format(given=_GIVEN_KEY if given else '')}"
        f'<div class="text">{"".join(_sentences(record))}</div>'
        "<table><tr><th></th><th>leader</th><th>draft</th><th>together</th>"
        "<th>leader alone, same text</th><th>ratio</th></tr>"
        f'{rows}</table><p class="note">{_summary(record)}</p></div>'
    )


def page(record: Mapping[str, Any], prompt: str) -> str:
    """A whole page that loads nothing and runs nothing.

    Args:
        record: of `Generation.to_dict()`.
        prompt: what was asked.
    """
    models = record["cost"]["models"]
    pair = _text(f"leader {models['leader']}, draft {models['draft']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        "<title>Who wrote what</title></head><body>"
        f'<div class="foreal"><pre>{_text(prompt)}</pre><p class="note">{pair}</p></div>'
        f"{trace(record)}</body></html>\n"
    )


def _sentences(record: Mapping[str, Any]) -> Iterator[str]:
    ends = {one["end"] - 1 for one in record["segments"] if one["reason"] == "hand_off"}
    given = {
        index
        for one in record["segments"]
        if one["reason"] == "given"
        for index in range(one["start"], one["end"])
    }
    for number, sentence in enumerate(record["sentences"], start=1):
        tokens = "".join(
            _token(record, number, sentence, index, index in given, index in ends)
            for index in range(sentence["start"], sentence["end"])
        )
        led = " led" if sentence["led"] else ""
        yield f'<span class="sentence{led}">{tokens}</span>'


def _token(
    record: Mapping[str, Any],
    number: int,
    sentence: Mapping[str, Any],
    index: int,
    given: bool,
    hands_over: bool,
) -> str:
    author = record["authors"][index]
    run = record["hit_runs"][index]
    place = f"token {index - sentence['start'] + 1} of {sentence['end'] - sentence['start']}"
    hover = [
        f"sentence {number}, {'led' if sentence['led'] else 'not led'}",
        f"{place}, {'given to' if given else 'by'} the {author}",
    ]
    if run is not None:
        hover.append(f"hit run {run}" if run else "the models disagree here")
    if hands_over:
        hover.append("handed over after it")
    look = f"{'given' if given else author}{' hand-off' if hands_over else ''}"
    return (
        f'<span class="{look}" title="{_text("; ".join(hover))}">'
        f"{_text(record['texts'][index])}</span>"
    )


def _summary(record: Mapping[str, Any]) -> str:
    cost = record["cost"]
    settings = ", ".join(
        f"{name} {cost['settings'][key]}"
        for key, name in _SHOWN_SETTINGS.items()
        if key in cost["settings"]
    )
    return _text(
        f"{cost['completion_tokens']} tokens ({cost['leader_tokens']} by the leader), "
        f"{cost['sentences']} sentences ({cost['led_sentences']} led), "
        f"{cost['handoffs']} hand-offs, {cost['seconds']['total']:.2f} s; {settings}; "
        f"ended by: {record['finish_reason']}"
    )


def _row(name: str, count: Mapping[str, float | None]) -> str:
    total, alone = count["total"], count["leader_only"]
    ratio = f"{total / alone:.2f}" if total is not None and alone else "–"
    values = "".join(
        f"<td>{scaled(count[key])}</td>" for key in ("leader", "draft", "total", "leader_only")
    )
    return f"<tr><th>{_text(name)}</th>{values}<td>{ratio}</td></tr>"


def _text(text: str) -> str:
    return escape(text.translate(_CONTROLS))
