"""Calls that a model writes without its template's marks: what is one, what is not, and when a
stream knows it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from integrations import cut_texts, pieces_of

from foreal_core import FoReaLConfig
from foreal_core.chat.calls import BrokenCall, ToolCall, read_calls
from foreal_core.chat.messages import callable_unmarked, held_to_calls
from foreal_core.chat.replies import Piece, ReplySplitter
from foreal_core.chat.unmarked import NO_TOOLS, UnmarkedTools
from foreal_core.text.call_syntax import HERMES, CallSyntax
from foreal_core.text.thinking import ThinkingMarks, ThinkingState

TOOLS = UnmarkedTools(("add", "find-it"))
LLAMA = CallSyntax(opening="", closing="", separator="", arguments_key="parameters", several=False)
PHI = CallSyntax(opening="<|call|>", middle="\n", closing="<|end|>")

ADD = {"name": "add", "arguments": {"a": 417, "b": 2765}}
FIND = {"name": "find-it", "arguments": {"what": 'x}]" ``` \\'}}
ONE = json.dumps(ADD)
LONG = json.dumps(ADD, indent=2)
OTHER = json.dumps(FIND)


def fence(body: str, word: str = "json") -> str:
    return f"```{word}\n{body}\n```"


def splitter(
    *, thinking: bool = False, unmarked: UnmarkedTools = TOOLS, syntax: CallSyntax | None = HERMES
) -> ReplySplitter:
    start = ThinkingState(ThinkingMarks(), "thinking" if thinking else "start")
    return ReplySplitter(start, calls=syntax, unmarked=unmarked)


def read(deltas: list[str], reader: ReplySplitter) -> tuple[str, list[Any]]:
    """The text, and the calls as they are written."""
    pieces = [piece for delta in deltas for piece in reader.feed(delta)] + reader.flush()
    calls = [piece.text for piece in pieces if piece.kind == "tool_call"]
    return text_of(pieces), calls


def values(text: str) -> dict[str, Any]:
    """What the reader of marked calls makes of one."""
    (call,) = read_calls(text, HERMES)
    assert isinstance(call, ToolCall)
    return {"name": call.name, "arguments": call.arguments}


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == "text")


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (fence(LONG), [ADD]),  # Qwen2.5-Coder
        (fence(ONE, ""), [ADD]),
        (fence(ONE, "tool_call"), [ADD]),
        (f"```{ONE}```", [ADD]),
        (ONE, [ADD]),
        (f"\n {LONG}\n\n", [ADD]),
        (f"{ONE}\n{OTHER}", [ADD, FIND]),
        (f"[{ONE}, {OTHER}]", [ADD, FIND]),
        (f"{fence(ONE)}\n\n{fence(OTHER)}\n", [ADD, FIND]),
        (fence(f"{ONE}\n{OTHER}"), [ADD, FIND]),
        (fence(f"[\n{ONE},\n{OTHER}\n]"), [ADD, FIND]),
        (f"{{{ONE}}}", [ADD]),  # as Qwen2.5-Coder's template shows a call
        (fence(f"{{{OTHER}}}\n{ONE}"), [FIND, ADD]),
        ('{"name": "add", "parameters": {}}', [{"name": "add", "arguments": {}}]),
    ],
)
def test_an_answer_that_is_calls_and_nothing_else(text: str, calls: list[Any]) -> None:
    for deltas in ([text], list(text)):
        said, found = read(deltas, splitter())
        assert said == "" and [values(one) for one in found] == calls
    said, found = read(list(f"Hm, {ONE}?</think>\n\n{text}"), splitter(thinking=True))
    assert said == "" and [values(one) for one in found] == calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "```",
        "```\n```",
        "```json\n[]\n```",
        "{}",
        ONE[:-1],
        f"{{{ONE}",
        f"{{ {ONE}}}",
        f"{ONE}}}",
        f"```json\n{ONE}",  # cut
        f"```json\n{ONE}\n``",
        f"[{ONE}, ",
        f"[{ONE}",
        f"{ONE},",
        f"So:\n{fence(ONE)}",
        f"{fence(ONE)}\nThis calls the tool.",
        f"{ONE} is a call.",
        f"{ONE} {{}}",
        fence(f"{ONE}\nx"),
        fence(f"# a call\n{ONE}"),
        f"~~~\n{ONE}\n~~~",
        f"``` json x\n{ONE}\n```",
        fence(json.dumps({"name": "getCapital", "arguments": {"country": "France"}})),
        json.dumps({"name": "Add", "arguments": {}}),
        json.dumps({"name": ["add"], "arguments": {}}),
        json.dumps({"name": "add"}),
        json.dumps({"name": "add", "arguments": [1]}),
        json.dumps({"name": "add", "arguments": "{}"}),
        json.dumps({"name": "add", "description": "Adds.", "parameters": {"type": "object"}}),
        json.dumps({"name": "add", "parameters": {"type": "object"}, "description": "Adds."}),
        json.dumps({"type": "function", "function": ADD}),
        json.dumps({"tools": [ADD]}),
        '{"name": "add", "arguments": {"a": 23 * 18, "b": 65}}',  # no JSON
        '{"name": "add", "arguments": {"a": [1}]}',
        '{"name": "add", "arguments": ' + "{" + '"a":' + "[" * 2_000 + "]" * 2_000 + "}}",
    ],
    ids=lambda text: text[:40],
)
def test_any_other_answer_is_text(text: str) -> None:
    for deltas in ([text], list(text)):
        assert read(deltas, splitter()) == (text, [])


def test_marked_calls_may_have_their_braces_twice() -> None:
    assert values(f"{{{LONG}\n}}") == values(LONG) == ADD
    both = read_calls(f"{{{ONE}}}\n{OTHER}", HERMES)
    assert [call.name for call in both] == ["add", "find-it"]
    for odd in (f"{{{ONE}", f"{{{ONE}]", f"{{{ONE} 1}}"):
        (broken,) = read_calls(odd, HERMES)
        assert isinstance(broken, BrokenCall) and "no JSON" in broken.error


def test_marked_calls_stay_calls_behind_what_looked_like_one() -> None:
    marked = f"<tool_call>\n{OTHER}\n</tool_call>"
    for text, said in ((marked, ""), (f"{ONE}\n{marked}", ONE), (f"```json\n{marked}", "```json")):
        assert read(list(text), splitter()) == (said, [OTHER])


def test_only_where_calls_are_looked_for_and_written_as_json() -> None:
    for syntax in (None, PHI):
        assert read([fence(ONE)], splitter(syntax=syntax)) == (fence(ONE), [])
    assert read([fence(ONE)], splitter(unmarked=NO_TOOLS)) == (fence(ONE), [])


STRICT = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "maximum": 9}},
                "required": ["a"],
            },
        },
    }
]


@pytest.mark.parametrize("parallel", [None, False])
def test_calls_of_strict_tools_follow_their_schema(parallel: bool | None) -> None:
    pytest.importorskip("llguidance", reason="needs the extra json")
    held = held_to_calls(FoReaLConfig(), STRICT, forced=False, parallel=parallel, strict=True)
    strict = callable_unmarked(STRICT, held)
    for fitting in ({"a": 1}, {"a": 1, "b": 2}):
        text = fence(json.dumps({"name": "add", "arguments": fitting}, indent=2))
        said, (call,) = read([text], splitter(unmarked=strict))
        assert said == "" and json.loads(call)["arguments"] == fitting
    for wrong in ({}, {"a": "1"}, {"a": 1, "c": 2}, {"a": 1, "b": 10}, {"b": 2}):
        text = fence(json.dumps({"name": "add", "arguments": wrong}, indent=2))
        assert read([text], splitter(unmarked=strict)) == (text, [])
    right, wrong = (json.dumps({"name": "add", "arguments": {"a": a}}) for a in (1, "1"))
    assert read([f"{right}\n{wrong}"], splitter(unmarked=strict)) == (f"{right}\n{wrong}", [])


def test_nothing_is_looked_for_in_an_answer_that_a_grammar_holds() -> None:
    forced = held_to_calls(FoReaLConfig(), STRICT, forced=True)
    schema = FoReaLConfig(json_schema={"type": "object"})
    for held in (forced, schema, held_to_calls(schema, STRICT, forced=False)):
        assert callable_unmarked(STRICT, held) == NO_TOOLS
    assert callable_unmarked(STRICT, FoReaLConfig()) == UnmarkedTools(("add",))


def test_a_template_without_marks_reads_its_own_calls_as_before() -> None:
    for text in (ONE, OTHER, json.dumps({"name": "unknown", "parameters": {"a": 1}})):
        reader = splitter(syntax=LLAMA)
        assert [piece.kind for piece in reader.feed(text)] == ["tool_call"]  # before the end
    assert read(list(fence(ONE)), splitter(syntax=LLAMA)) == ("", [ONE])


# -- streams --------------------------------------------------------------------------------------

PARTS = [
    *("```", "`", "json", "\n", " ", "[", "]", ",", "{}", "}", "x", "<tool_call>", "</tool_call>"),
    *(ONE, OTHER, '{"name": "add", "arguments": ', '{"name": ', '"add"', "<think>", "</think>"),
]


@cut_texts(PARTS, "thinking")
def test_cuts_change_nothing_and_nothing_is_lost(text: str, cuts: set[int], thinking: bool) -> None:
    whole = read([text], splitter(thinking=thinking))
    assert read(pieces_of(text, cuts), splitter(thinking=thinking)) == whole
    without = read([text], splitter(thinking=thinking, unmarked=NO_TOOLS))
    said, calls = whole
    if whole != without:  # then it is calls and white space, fences and what joins a list
        assert calls and not said
        assert (
            not without[0].replace(ONE, "").replace(OTHER, "").replace("json", "").strip("`[], \n")
        )


SPACE = st.sampled_from(["", " ", "\n", "\n  "])
CALL = st.sampled_from([ONE, LONG, OTHER])


@st.composite
def answers(draw: st.DrawFn) -> str:
    """An answer that is calls and nothing else."""

    def group() -> str:
        calls = draw(st.lists(CALL, min_size=1, max_size=3))
        if len(calls) == 1 and draw(st.booleans()):
            return calls[0]
        comma = draw(SPACE) + "," + draw(SPACE)
        return "[" + draw(SPACE) + comma.join(calls) + draw(SPACE) + "]"

    def block() -> str:
        groups = draw(SPACE).join(group() for _ in range(draw(st.integers(1, 2))))
        if draw(st.booleans()):
            return groups
        return f"```{draw(st.sampled_from(['', 'json', 'tool_call']))}\n{groups}{draw(SPACE)}```"

    return draw(SPACE) + "".join(block() + draw(SPACE) for _ in range(draw(st.integers(1, 2))))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=answers())
def test_a_stream_of_calls_shows_nothing_of_them(text: str) -> None:
    reader = splitter()
    assert [piece for letter in text for piece in reader.feed(letter)] == []
    pieces = reader.flush()
    assert [piece.kind for piece in pieces] == ["tool_call"] * text.count('"arguments"')


@pytest.mark.parametrize(
    ("held", "letter"),
    [
        ("", "x"),
        ("``", "x"),
        ("```json ", "x"),
        ("```json\n{", "}"),
        ('{"name', "s"),
        ('{"name": "ad', "x"),
        ('{"name": "add', "e"),
        ('{"name": "add", "', "d"),
        ('{"name": "add", "arguments": ', "["),
        ('{"name": "add", "arguments": {"a": 23 *', "}"),
        ('{"name": "add", "arguments": {}', ","),
        ('{"name": "add", "arguments": {}}\n', "x"),
        ('[{"name": "add", "arguments": {}}', "}"),
        ("```json\n[" + ONE + ",", "]"),
        (fence(ONE), "."),
    ],
)
def test_text_comes_as_soon_as_it_can_be_no_call(held: str, letter: str) -> None:
    reader = splitter()
    assert [piece for one in held for piece in reader.feed(one)] == []
    assert text_of(reader.feed(letter)) == held + letter
