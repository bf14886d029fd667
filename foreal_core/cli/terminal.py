"""The commands' output: the text by author while it is written, then its cost.

Reads events and records only: no model, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from foreal_core.cost import TOKEN_KINDS
from foreal_core.events import DRAFT, LEADER, Author, TokenEvent
from foreal_core.report.numbers import scaled

# Blue and vermilion of Okabe and Ito's palette: told apart with every kind of colour vision and
# legible on light and dark grounds; the leader is bold as well.
_STYLES: dict[Author, str] = {LEADER: "bold #0072b2", DRAFT: "#d55e00"}
_MARKS: dict[Author, str] = {LEADER: "[L]", DRAFT: "[D]"}

# A model may write any character; those that steer a terminal are not shown.
_STEERING = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

_COUNTS = (
    ("written FLOPs", "flops_written", ""),
    ("computed FLOPs", "flops", ""),
    ("weight bytes read", "weight_bytes", "B"),
)
_COUNTS_NOTE = (
    "Written FLOPs are the paper's count: each written token, charged to its author. Computed "
    "FLOPs hold everything that was computed, catch-up and rejected proposals too; weight bytes "
    "are what the clock follows at small batch. The ratio is total / leader alone."
)
_TESTS_NOTE = (
    "Slopes are of the share misaligned, within each response: per token of the sentence (local "
    "diminish), per length of the response (global). One-sided sign-flip tests over responses."
)
_ORACLE_SHARES = ("led_sentences", "leader_tokens", "flops_written")
_ORACLE_NOTE = (
    "Led sentences that a greedy search found to be enough for the right answer, of the questions "
    "that the leader alone gets right; written FLOPs against its own answers."
)
_FEW_TOKENS = 8
_LABEL_WIDTH = 14
_KIND_LABELS = {"catch_up": "catch-up"}


class LiveText:
    """Writes a text to a console token by token, in its authors' colours.

    Where there are no colours, a mark says who goes on at each hand-off; with `plain` the text
    goes out as it is.
    """

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        self._console = console
        self._plain = plain
        coloured = console.is_terminal and console.color_system is not None
        self._marked = not plain and (console.no_color or not coloured)
        self._author: Author | None = None

    def start(self) -> None:
        """Says in one line which colour or mark is whose."""
        if self._plain:
            return
        line = Text()
        for author in (LEADER, DRAFT):
            label = f"{_MARKS[author]} {author}" if self._marked else f"■ {author}"
            line.append(label, _STYLES[author]).append("   ")
        line.rstrip()
        self._console.print(line, highlight=False)

    def write(self, event: TokenEvent) -> None:
        """Shows what became readable with one token."""
        if not event.text:
            return
        if self._plain:
            self._out(event.text)
            return
        if self._marked and event.author != self._author:
            self._out(_MARKS[event.author])
        self._author = event.author
        self._out(event.text.translate(_STEERING), _STYLES[event.author])

    def end(self) -> None:
        """Ends the last line."""
        self._out("\n")

    def _out(self, text: str, style: str = "") -> None:
        if self._plain:
            self._console.file.write(text)
            self._console.file.flush()
        else:
            # A segment is neither wrapped nor interpreted, unlike a text.
            segment = Segment(text, self._console.get_style(style))
            self._console.print(Segments([segment]), end="", soft_wrap=True)


def cost_view(record: Mapping[str, Any]) -> list[RenderableType]:
    """The cost of one call, from `CostReport.to_dict()`."""
    table = _table("cost", LEADER, DRAFT, "total", "leader alone", "ratio")
    _add_tokens(table, record)
    table.add_section()
    for label, key, unit in _COUNTS:
        _add_count(table, label, record[key], unit)
    return [table, Text(_times(record)), Text(_structure(record)), Text(_COUNTS_NOTE, "dim")]


def eval_view(record: Mapping[str, Any]) -> list[RenderableType]:
    """One run over a suite, from `EvaluationRecord.to_dict()`."""
    low, high = record["interval"]
    short, long = record["completion_tokens_interval"]
    result = Table(box=None, show_header=False, pad_edge=False)
    result.add_row("accuracy", f"{record['accuracy']:.1%} [{low:.1%}, {high:.1%}]")
    result.add_row("tokens", f"{record['completion_tokens']:.0f} [{short:.0f}, {long:.0f}]")
    result.add_row("by the leader", f"{record['leader_share']:.0%}")
    result.add_row("cut off by the limit", f"{record['unfinished']} of {record['problems']}")
    result.add_row("seconds", f"{record['seconds']:.1f}, up to {record['batch_size']} at a time")
    table = _table("all answers", LEADER, DRAFT, "total", "leader alone", "ratio")
    for label, key, unit in _COUNTS:
        _add_count(table, label, record[key], unit)
    alone = [scaled(record["weight_bytes_alone"][key], "B") for key in (LEADER, DRAFT, "total")]
    table.add_row("the same, one at a time", *alone, "", "")
    return [result, table, Text(_COUNTS_NOTE, "dim")]


def analysis_view(record: Mapping[str, Any]) -> list[RenderableType]:
    """Where leader and draft disagree, from `analysis.analyze`."""
    table = _table("misaligned", "share", "95 %", "responses", "tokens")
    tests = _table("test", "claim", "slope", "95 %", "p")
    for name, scope in record["scopes"].items():
        low, high = scope["interval"]
        table.add_row(
            name,
            f"{scope['misaligned']:.1%}",
            f"{low:.1%} to {high:.1%}",
            str(scope["responses"]),
            str(scope["response_tokens"]),
        )
        for test, result in scope["tests"].items():
            if result["slope"] is not None:
                low, high = result["interval"]
                tests.add_row(
                    f"{name}: {test.replace('_', ' ')}",
                    result["claim"],
                    f"{result['slope']:+.3g}",
                    f"{low:+.3g} to {high:+.3g}",
                    f"{result['p_value']:.2g}",
                )
    words = ", ".join(
        f"{token['text']!r} {token['misaligned']}/{token['occurrences']}"
        for token in record["scopes"]["all"]["tokens"][:_FEW_TOKENS]
    )
    return [table, tests, Text(f"Most misaligned: {words}"), Text(_TESTS_NOTE, "dim")]


def oracle_view(record: Mapping[str, Any]) -> list[RenderableType]:
    """How little the leader must write, from `analysis.find_limit`."""
    table = _table("questions", "asked", "leader right", "found", "led, by questions")
    shares = _table("of those found", "led sentences", "by the leader", "written FLOPs")
    for name, scope in record["scopes"].items():
        led = ", ".join(f"{count}: {questions}" for count, questions in scope["led"].items())
        asked = (str(scope[count]) for count in ("questions", "leader", "found"))
        table.add_row(name, *asked, led)
        if scope["found"]:
            shares.add_row(name, *(_share(scope[count]) for count in _ORACLE_SHARES))
    return [table, shares, Text(_ORACLE_NOTE, "dim")]


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['share']:.1%} ({low:.1%} to {high:.1%})"


def bench_view(record: Mapping[str, Any]) -> list[RenderableType]:
    """The measurements of one benchmark run, from `benchmark.run`."""
    table = _table("measured", "median", "min", "max", "target", "met")
    for target in record["targets"]:
        low, high = target["spread"]
        table.add_row(
            target["what"],
            f"{target['value']:.2f}",
            f"{low:.2f}",
            f"{high:.2f}",
            f"{target['comparison']} {target['limit']:g}",
            "yes" if target["met"] else "NO",
        )
    machine = record["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch threads"
    if machine["load_average"]:
        where += f", load {machine['load_average'][0]:.1f} at the start"
    return [table, Text(where)]


def _table(label: str, *values: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Where the terminal is too narrow, text is folded: none of it may be lost.
    table.add_column(label, min_width=_LABEL_WIDTH, overflow="fold")
    for heading in values:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _add_tokens(table: Table, record: Mapping[str, Any]) -> None:
    written = (record["leader_tokens"], record["draft_tokens"])
    table.add_row("tokens written", *_summed(*written))
    table.add_row("prompt tokens", "", "", str(record["prompt_tokens"]))
    passes = record["forward_passes"]
    table.add_row("forward passes", *_summed(passes[LEADER], passes[DRAFT]))
    for kind in TOKEN_KINDS:
        fed = [record["forward_tokens"][author][kind] for author in (LEADER, DRAFT)]
        table.add_row(f"tokens fed: {_KIND_LABELS.get(kind, kind)}", *_summed(*fed))


def _add_count(table: Table, label: str, count: Mapping[str, float | None], unit: str) -> None:
    total, alone = count["total"], count["leader_only"]
    ratio = f"{total / alone:.2f}" if total is not None and alone else "-"
    values = [scaled(count[key], unit) for key in (LEADER, DRAFT, "total")]
    table.add_row(label, *values, scaled(alone, unit), ratio)


def _summed(leader: int, draft: int) -> tuple[str, str, str]:
    return str(leader), str(draft), str(leader + draft)


def _times(record: Mapping[str, Any]) -> str:
    seconds = record["seconds"]
    queued, first, total = (_duration(seconds[key]) for key in ("queued", "first_token", "total"))
    speed = record["tokens_per_second"]
    return f"{total} total (queued {queued}, first token {first}), {speed:.0f} tokens/s"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


def _structure(record: Mapping[str, Any]) -> str:
    return (
        f"sentences {record['sentences']}, led {record['led_sentences']}, "
        f"hand-offs {record['handoffs']}"
    )
