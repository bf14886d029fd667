"""Chats with tool calls through the templates of families: what is shown, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chats import (
    ANSWER,
    TOOLS,
    USER,
    WITH_CALLS,
    calling,
    pair_tokenizer,
    rendered,
    result,
    shown_by,
    tokenizer_with,
)
from families import FAMILIES, R1_DISTILL
from transformers import AutoTokenizer

from foreal_core.demo import pair_paths
from foreal_core.errors import ConfigError
from foreal_core.text.call_syntax import HERMES, CallSyntax, find_call, read_syntax
from foreal_core.text.tool_forms import call_syntax, shows_tools, tool_form

ARGUMENTS = {"city": 'Köln "old" <b>\'s', "days": 3, "warm": True, "note": None}


# -- tool calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_is_found_out_about_each_family(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_with(family.template)
    assert shows_tools(tokenizer) is family.tools
    assert tool_form(tokenizer, tools=family.tools) == family.form


@pytest.mark.parametrize("name", WITH_CALLS)
@pytest.mark.parametrize("arguments", [ARGUMENTS, json.dumps(ARGUMENTS), {}], ids=type)
@pytest.mark.parametrize("text", ["", None, "Looking."])
def test_a_call_is_shown_whole_and_as_json(name: str, arguments: Any, text: str | None) -> None:
    chat = [USER, calling(("weather", arguments), text=text), result("wet, 9"), ANSWER, USER]
    shown = shown_by(name, chat)
    wanted = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert find_call(shown, "weather", wanted) is not None
    assert "wet, 9" in shown
    assert "It rains." in shown and shown.count("Rain where?") == 2
    form = FAMILIES[name].form
    assert form is not None
    if text and form.beside != "left out":
        assert shown.count("Looking.") == 1


@pytest.mark.parametrize("name", WITH_CALLS)
def test_several_calls_and_their_results_in_order(name: str) -> None:
    asked = calling(("weather", {"city": "Bonn"}), ("clock", {"city": "Rome"}))
    shown = shown_by(name, [USER, asked, result("wet"), result("noon", 1), ANSWER])
    places = [
        find_call(shown, "weather", {"city": "Bonn"}),
        find_call(shown, "clock", {"city": "Rome"}),
    ]
    first, second = (place.start for place in places if place is not None)
    assert first < second
    assert shown.count("wet") == shown.count("noon") == 1
    if FAMILIES[name].form == FAMILIES["llama3"].form:  # one call a message: results follow theirs
        assert first < shown.find("wet") < second < shown.find("noon")


@pytest.mark.parametrize("name", WITH_CALLS)
def test_results_and_calls_without_ids_belong_together_by_order(name: str) -> None:
    asked = calling(("weather", {"city": "Bonn"}), ("clock", {"city": "Rome"}))
    bare = {**asked, "tool_calls": [{"function": one["function"]} for one in asked["tool_calls"]]}
    results = [{"role": "tool", "content": text} for text in ("wet", "noon")]
    shown = shown_by(name, [USER, bare, *results, ANSWER])
    assert -1 < shown.find("wet") < shown.find("noon")


@pytest.mark.parametrize(
    ("name", "written"),
    {
        "qwen2.5": '<tool_call>\n{"name": "clock", "arguments": {"city": "Rome"}}\n</tool_call>',
        "qwen3": '<tool_call>\n{"name": "clock", "arguments": {"city": "Rome"}}\n</tool_call>',
        "r1-distill": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n"
        '```json\n{"city": "Rome"}\n```<｜tool▁call▁end｜>',
        "r1-0528": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n"
        '```json\n{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "llama3": '{"name": "clock", "parameters": {"city": "Rome"}}<|eot_id|>',
        "mistral": '[TOOL_CALLS] [{"name": "clock", "arguments": {"city": "Rome"}, "id": "',
        "glm4": '<|assistant|>clock\n{"city": "Rome"}<|observation|>',
        "phi4": '<|tool_call|>[{"name": "clock", "arguments": {"city": "Rome"}}]<|/tool_call|>',
    }.items(),
)
def test_calls_as_the_families_write_them(name: str, written: str) -> None:
    chat = [USER, calling(("clock", '{"city": "Rome"}')), result("noon")]
    assert written in shown_by(name, chat)


@pytest.mark.parametrize("name", WITH_CALLS)
def test_prompts_are_what_the_template_shows(name: str) -> None:
    family = FAMILIES[name]
    tokenizer, tools = pair_tokenizer(family.template), TOOLS if family.tools else None
    chat = [USER, calling(("clock", '{"city": "Rome"}'), text="Hm."), result("noon"), ANSWER, USER]
    ids = tokenizer.encode_chat(chat, tools=tools)
    assert tokenizer.tokenizer.decode(ids) == rendered(family.template, chat, tools)


def test_arguments_that_are_no_json_stay_what_the_model_wrote() -> None:
    chat = [USER, calling(("clock", '{"city": "Ro')), result("error: no JSON"), ANSWER]
    for name in WITH_CALLS:
        assert "city" in shown_by(name, chat)


@pytest.mark.parametrize("calls", [["clock"], [{"function": {"arguments": {}}}], [{}]])
def test_a_call_without_a_name_is_refused(calls: list[Any]) -> None:
    chat = [USER, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(ConfigError, match=r"messages\[1\]\.tool_calls\[0\]"):
        shown_by("qwen3", chat)


XML_CALLS = """
{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}
  {{- '<' + message.role + '>' + message.content }}
  {%- for call in message.tool_calls or [] %}
    {{- '<function=' + call.function.name + '>' }}
    {%- for key, value in call.function.arguments | items %}<{{ key }}>{{ value }}{% endfor %}
  {%- endfor %}
{%- endfor %}
"""


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (FAMILIES["gemma3"].template, "knows no tools"),
        (R1_DISTILL, "knows no tools"),
        (FAMILIES["gemma3"].template + "{# tools #}", "knows no tools"),
        (XML_CALLS, "shows no call of a tool whole"),
    ],
)
def test_tools_that_a_template_does_not_show_are_refused(template: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        rendered(template, [USER], TOOLS)
    assert "pair/leader" in str(caught.value)  # whose template it is


def test_a_history_with_calls_is_refused_where_no_call_is_shown() -> None:
    chat = [USER, calling(("clock", {})), result("noon")]
    with pytest.raises(ConfigError, match=r"messages\[1\] calls a tool"):
        rendered(FAMILIES["gemma3"].template, chat)


def test_a_new_template_is_tried_anew() -> None:
    tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
    found = []
    for name in ("mistral", "r1-0528", "mistral"):
        tokenizer.chat_template = FAMILIES[name].template
        found.append(call_syntax(tokenizer))
    assert found[0] == found[2] != found[1]
    tokenizer.chat_template = None
    assert call_syntax(tokenizer) is HERMES


TWO = [("f", {"x": [1]}), ("g", {"y": None})]


@pytest.mark.parametrize(
    ("written", "syntax"),
    [
        (  # Mistral's later form
            '[TOOL_CALLS]f[ARGS]{"x": [1]}[TOOL_CALLS]g[ARGS]{"y": null}',
            CallSyntax(
                **{"opening": "[TOOL_CALLS]", "middle": "[ARGS]", "closing": "", "separator": ""},
                **{"name_key": "", "arguments_key": ""},
            ),
        ),
        (  # DeepSeek-V3.1: nothing between two calls, marks that begin and end alike
            '<｜calls▁begin｜><｜call▁begin｜>f<｜sep｜>{"x": [1]}<｜call▁end｜>'
            '<｜call▁begin｜>g<｜sep｜>{"y": null}<｜call▁end｜><｜calls▁end｜>',
            CallSyntax(
                **{"begin": "<｜calls▁begin｜>", "opening": "<｜call▁begin｜>"},
                **{"middle": "<｜sep｜>", "closing": "<｜call▁end｜>", "separator": ""},
                **{"end": "<｜calls▁end｜>", "name_key": "", "arguments_key": ""},
            ),
        ),
        (  # Command R's
            'Action: ```json\n[{"tool_name": "f", "parameters": {"x": [1]}},\n'
            '{"tool_name": "g", "parameters": {"y": null}}]\n```',
            CallSyntax(
                **{"begin": "Action: ```json\n[", "opening": "", "closing": "", "end": "]\n```"},
                **{"separator": ",\n", "name_key": "tool_name", "arguments_key": "parameters"},
            ),
        ),
        ('f\n{"x": [1]}g\n{"y": null}', None),  # nothing tells that a call begins
        ('<call>{"name": "f", "arguments": {"x": [1]}}', None),  # the second is missing
    ],
)
def test_other_ways_to_write_calls(written: str, syntax: CallSyntax | None) -> None:
    assert read_syntax(written, TWO) == syntax
