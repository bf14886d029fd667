"""Chats with tool calls, late system messages and trimmed histories through the templates of
families: what is shown, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from families import FAMILIES, R1_DISTILL
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

from foreal_core.demo import pair_paths
from foreal_core.errors import ConfigError
from foreal_core.text.call_syntax import HERMES, CallSyntax, find_call, read_syntax
from foreal_core.text.conversation import render_conversation
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.tool_forms import call_syntax, shows_tools, tool_form

WITH_CALLS = sorted(name for name, family in FAMILIES.items() if family.form is not None)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks up.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "clock")
]


@cache
def tokenizer_with(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
    tokenizer.chat_template = template
    return tokenizer


def rendered(
    template: str, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> str:
    tokenizer = tokenizer_with(template)

    def render(chat: Sequence[dict[str, Any]], prelude: str) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(chat),
                tools=tools,
                chat_template=prelude + template,
                tokenize=False,
                add_generation_prompt=True,
            )
        )

    return render_conversation(tokenizer, messages, tools, render)


def shown_by(name: str, messages: Sequence[dict[str, Any]]) -> str:
    family = FAMILIES[name]
    return rendered(family.template, messages, TOOLS if family.tools else None)


def calling(*calls: tuple[str, Any], text: str | None = None, **more: Any) -> dict[str, Any]:
    made = [
        {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": given}}
        for place, (name, given) in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, "tool_calls": made, **more}


def result(text: str, call: int = 0) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"call_{call}"}


USER = {"role": "user", "content": "Rain where?"}
ANSWER = {"role": "assistant", "content": "It rains."}
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


# -- turns -----------------------------------------------------------------------------------------


SYSTEM = {"role": "system", "content": "Be brief."}
LATE = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_system_message_is_shown(name: str) -> None:
    for chat in (
        [SYSTEM, USER, ANSWER, LATE, USER],
        [USER, ANSWER, LATE, USER],
        [SYSTEM, LATE, USER],
    ):
        shown = shown_by(name, chat)
        for message in chat:
            assert message["content"] in shown
        assert shown.count("Be kind.") == 1


def test_late_system_messages_keep_their_places_where_the_template_shows_them() -> None:
    shown = shown_by("llama3", [SYSTEM, USER, ANSWER, LATE, USER])
    assert shown.find("It rains.") < shown.find("Be kind.")
    merged = shown_by("qwen3", [SYSTEM, USER, ANSWER, LATE, USER])
    assert "Be brief.\nBe kind." in merged


NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)


@pytest.mark.parametrize("silent", [False, True])
def test_a_system_message_that_is_not_shown_is_refused(silent: bool) -> None:
    template = NO_SYSTEM
    if silent:
        template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"messages\[2\] is a system message"):
        rendered(template, [USER, ANSWER, SYSTEM])
    assert rendered(template, [USER]) == "Rain where?"


PARTIAL = {
    "an answer first": [ANSWER, USER],
    "a result first": [result("wet"), ANSWER, USER],
    "a call first": [calling(("clock", {"city": "Rome"})), result("noon")],
    "a system message alone": [SYSTEM],
    "an answer after a system message": [SYSTEM, ANSWER],
    "a question after a result": [USER, calling(("clock", {"city": "Rome"})), result("noon"), USER],
    "a question after a question": [USER, {"role": "user", "content": "And when?"}],
    "an answer after an answer": [USER, ANSWER, {"role": "assistant", "content": "Hard."}, USER],
}


@pytest.mark.parametrize("name", WITH_CALLS)
@pytest.mark.parametrize("case", PARTIAL)
def test_partial_histories_are_taken(name: str, case: str) -> None:
    """As they are left by trimming, and by agents that were interrupted."""
    shown = shown_by(name, PARTIAL[case])
    for message in PARTIAL[case]:
        # Mistral's shows a system message with a last question alone.
        if message["role"] != "system" or name != "mistral":
            assert str(message["content"] or "clock") in shown


def test_a_template_that_takes_the_turns_gets_them_unchanged() -> None:
    assert "<|im_start|>user" not in shown_by("qwen2.5", [ANSWER])
    assert "<|im_start|>user\n<|im_end|>" in shown_by("qwen3", [ANSWER])


REFUSES_PIRATES = (
    "{% for message in messages %}{% if 'pirate' in message.content %}"
    "{{ raise_exception('No pirates!') }}{% endif %}{{ message.content }}{% endfor %}"
)


def test_a_refused_message_is_named_by_its_number() -> None:
    pirate = {"role": "assistant", "content": "A pirate."}
    for before in range(5):
        chat = [USER, ANSWER] * 3
        chat.insert(before, pirate)
        with pytest.raises(
            ConfigError, match=rf"refused messages\[{before}\] \(role 'assistant'\)"
        ):
            rendered(REFUSES_PIRATES, chat)
    with pytest.raises(ConfigError, match="refused these messages: No chat at all"):
        rendered("{{ raise_exception('No chat at all') }}", [USER])


def test_contents_in_parts_and_without_text() -> None:
    parts = [{"type": "text", "text": "One."}, "Two."]
    assert "One.\nTwo." in shown_by("qwen3", [{"role": "user", "content": parts}])
    assert "None" not in shown_by("qwen3", [USER, {"role": "assistant", "content": None}, USER])
    for content in ([{"type": "image_url", "image_url": "x"}], 7):
        with pytest.raises(ConfigError, match=r"messages\[1\]"):
            shown_by("qwen3", [USER, {"role": "user", "content": content}])


texts = st.sampled_from(["alpha", "beta", "gamma", ""])
messages_of_any_kind = st.one_of(
    st.builds(lambda text: {"role": "user", "content": text}, texts),
    st.builds(lambda text: {"role": "assistant", "content": text}, texts),
    st.builds(lambda text: {"role": "system", "content": text}, texts),
    st.builds(lambda text, at: result(text, at), texts, st.integers(0, 2)),
    st.builds(lambda text: calling(("weather", {"city": "Bonn"}), text=text), texts),
    st.builds(lambda: calling(("weather", {}), ("clock", {"city": "Rome"}))),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(WITH_CALLS), chat=st.lists(messages_of_any_kind, min_size=1, max_size=7)
)
def test_nothing_is_lost_whatever_the_order(name: str, chat: list[dict[str, Any]]) -> None:
    shown = shown_by(name, chat)
    form = FAMILIES[name].form
    assert form is not None
    for word in ("alpha", "beta", "gamma"):
        said = [message for message in chat if message["content"] == word]
        if name == "mistral":  # see above
            said = [one for one in said if one["role"] != "system"]
        if form.beside == "left out":
            said = [one for one in said if "tool_calls" not in one]
        assert shown.count(word) >= len(said)


# -- counts ----------------------------------------------------------------------------------------


def counter(template: str) -> PairTokenizer:
    size = len(tokenizer_with(template))
    return PairTokenizer(
        tokenizer_with(template),
        leader_vocab_size=size,
        draft_vocab_size=size,
        leader_eos=[1399],
        draft_eos=[1399],
    )


STRICT = (  # takes no history but a whole one, and no system message
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('no') }}{% endif %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    template=st.sampled_from([STRICT, *(family.template for family in FAMILIES.values())]),
    chat=st.lists(messages_of_any_kind, min_size=1, max_size=6),
)
def test_a_history_is_counted_whatever_part_of_it_is_left(
    template: str, chat: list[dict[str, Any]]
) -> None:
    tokenizer = counter(template)
    counted = tokenizer.count_chat(chat)
    try:
        assert counted == len(tokenizer.encode_chat(chat))
    except ConfigError:
        assert counted > sum(len(tokenizer.encode_plain(one["content"] or "")) for one in chat)


def test_a_count_says_what_is_wrong_with_more_than_the_messages() -> None:
    for chat, problem in ((["hello"], "is str"), ([], "empty"), ([{"role": "user"}], "content")):
        with pytest.raises(ConfigError, match=problem):
            counter(STRICT).count_chat(chat)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="knows no tools"):
        counter(STRICT).count_chat([USER], tools=TOOLS)
