"""Tool calls as each family of templates writes them: held to their schema, and read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from families import FAMILIES
from random_writer import factory_of, tokenizer_with, written

from foreal_core import ConfigError, FoReaLConfig
from foreal_core.chat.calls import ToolCall
from foreal_core.chat.messages import call_schema
from foreal_core.chat.replies import Part, Piece, ReplyReader, splitter_of
from foreal_core.grammar.schemas import moved
from foreal_core.text.detokenizer import Detokenizer
from foreal_core.text.tool_forms import call_syntax

pytest.importorskip("llguidance", reason="the extra 'json' is not installed")

# Tokens of their own that mark calls: those that decoded text leaves out, and those that it shows.
Marks = tuple[tuple[str, ...], tuple[str, ...]]
SPECIAL = {
    "mistral": ("[TOOL_CALLS]",),
    "phi4": ("<|tool_call|>", "<|/tool_call|>"),
    "qwen3": ("<tool_call>", "</tool_call>"),
    "r1-0528": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
}
# As in Qwen2.5 and Qwen3.
VISIBLE = {"qwen3": ("<tool_call>", "</tool_call>")}
WAYS: list[tuple[str, Marks]] = [
    *((name, ((), ())) for name, family in FAMILIES.items() if family.tools),
    *((name, (special, ())) for name, special in SPECIAL.items()),
    *((name, ((), visible)) for name, visible in VISIBLE.items()),
]

ORDER = {
    "type": "object",
    "$defs": {"Item": {"type": "object", "properties": {"sku": {"enum": ["a", "b"]}}}},
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "maxItems": 2},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["items", "note"],
}
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in (("order", ORDER), ("weather", CITY))
]
CALL = call_schema(TOOLS)
CALLS = {"type": "array", "items": moved(CALL, "/items")}


def read(tokenizer: Any, ids: list[int], *, parallel: bool = True) -> list[Part]:
    reader = ReplyReader(splitter_of(tokenizer, [], tools=True), parallel=parallel)
    detokenizer = Detokenizer(tokenizer)
    parts = [part for token in ids for part in reader.feed(detokenizer.push(token), token)]
    return parts + reader.flush()


def assert_fits(call: Part) -> None:
    assert isinstance(call, ToolCall), call
    if call.name == "weather":
        assert call.arguments["city"] in ("Rome", "Bonn") and len(call.arguments) == 1
    else:
        assert call.name == "order" and call.arguments.keys() == {"items", "note"}
        assert all(item.get("sku", "a") in ("a", "b") for item in call.arguments["items"])


@pytest.mark.parametrize(("name", "marks"), WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_a_forced_call_is_read_back(name: str, marks: Marks, seed: int) -> None:
    tokenizer = tokenizer_with(FAMILIES[name].template, *marks)
    config = FoReaLConfig(call_schema=CALL, max_new_tokens=300)
    (call,) = read(tokenizer, written(config, seed, tokenizer))
    assert_fits(call)


@pytest.mark.parametrize(("name", "marks"), WAYS)
def test_several_calls_where_the_template_shows_several(name: str, marks: Marks) -> None:
    tokenizer = tokenizer_with(FAMILIES[name].template, *marks)
    config = FoReaLConfig(call_schema=CALLS, max_new_tokens=300)
    answers = [read(tokenizer, written(config, seed, tokenizer)) for seed in range(6)]
    for answer in answers:
        for call in answer:
            assert_fits(call)
    assert any(len(answer) > 1 for answer in answers) is call_syntax(tokenizer).several
    assert len(read(tokenizer, written(config, 0, tokenizer), parallel=False)) == 1


@pytest.mark.parametrize(("name", "marks"), WAYS)
def test_text_stays_free_and_calls_in_it_do_not(name: str, marks: Marks) -> None:
    tokenizer = tokenizer_with(FAMILIES[name].template, *marks)
    config = FoReaLConfig(call_schema=CALLS, call_required=False, max_new_tokens=300)
    prompt = tokenizer.encode("</think>", add_special_tokens=False)
    constraint = factory_of(tokenizer).compile(config, prompt, 300)
    syntax = call_syntax(tokenizer)
    free = "It is 1 < 2 {so} [what]."
    opened = syntax.begin + syntax.opening + (syntax.middle is None) * '{"name": "'
    for text in ("", *([f"{free}\n"] if syntax.start_mark else [])):
        ids = tokenizer.encode(text + opened, add_special_tokens=False)
        for position in range(len(ids)):  # nothing of it is refused
            allowed = constraint.allowed(ids[:position])
            assert allowed is not None and allowed[ids[position]]
        mask = constraint.allowed(ids)
        assert mask is not None
        names = {tokenizer.decode([token])[:1] for token in mask.nonzero()[0]}
        assert names <= {"o", "w"}, names  # of order and weather
    whole = tokenizer.encode(free, add_special_tokens=False)
    mask = constraint.allowed(whole)
    assert mask is not None and mask[tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_calls_are_marked_by_the_tokens_that_mark_them() -> None:
    for marks in ((VISIBLE["qwen3"], ()), ((), VISIBLE["qwen3"])):
        tokenizer = tokenizer_with(FAMILIES["qwen3"].template, *marks)
        ids = written(FoReaLConfig(call_schema=CALL, max_new_tokens=300), 0, tokenizer)
        assert {*tokenizer.convert_tokens_to_ids(VISIBLE["qwen3"])} <= {*ids}


@pytest.mark.parametrize("marks", [(("<mark>", "|mark|"), ()), ((), ("<mark>",))])
def test_a_value_that_is_spelled_like_a_mark_is_text(marks: Marks) -> None:
    tokenizer = tokenizer_with(None, *marks)
    for mark in (*marks[0], *marks[1]):
        schema = {"type": "object", "properties": {mark: {"const": f"a{mark}"}}, "required": [mark]}
        config = FoReaLConfig(
            json_schema=schema | {"additionalProperties": False}, max_new_tokens=60
        )
        ids = written(config, 0, tokenizer)
        assert tokenizer.convert_tokens_to_ids(mark) not in ids
        assert json.loads(tokenizer.decode(ids, skip_special_tokens=True)) == {mark: f"a{mark}"}


def test_names_that_the_schema_hides_are_refused_where_they_are_needed() -> None:
    hidden = {"type": "object", "properties": {"name": {"type": "string"}}}
    config = FoReaLConfig(call_schema=hidden, max_new_tokens=60)
    for name in ("llama3", "r1-0528"):
        with pytest.raises(ConfigError, match="call_schema is not allowed"):
            written(config, 0, tokenizer_with(FAMILIES[name].template))
    assert written(config, 0, tokenizer_with(FAMILIES["qwen3"].template))


# -- what models write that no grammar holds -------------------------------------------------------


@pytest.mark.parametrize(("name", "marks"), WAYS)
@pytest.mark.parametrize("seed", range(3))
def test_calls_are_read_however_the_text_is_cut(name: str, marks: Marks, seed: int) -> None:
    tokenizer = tokenizer_with(FAMILIES[name].template, *marks)
    given = [("order", {"note": '</tool_call> ]}" \\', "items": []}), ("weather", {"city": "Rome"})]
    before = "" if not call_syntax(tokenizer).start_mark else "Let me see.\n"
    text = before + call_syntax(tokenizer).written(given) + "\nDone."
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = read(tokenizer, ids)
    calls = [(part.name, part.arguments) for part in parts if isinstance(part, ToolCall)]
    assert calls == given
    said = "".join(part.text for part in parts if isinstance(part, Piece))
    assert said == ("Let me see.Done." if before else "Done.")
