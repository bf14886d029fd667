"""Late system messages and trimmed histories through the templates of families: what is shown, what
is refused, how it is counted."""

from __future__ import annotations

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
)
from families import FAMILIES
from hypothesis import given, settings, strategies as st

from foreal_core.errors import ConfigError

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
    tokenizer = pair_tokenizer(template)
    counted = tokenizer.count_chat(chat)
    try:
        assert counted == len(tokenizer.encode_chat(chat))
    except ConfigError:
        assert counted > sum(len(tokenizer.encode_plain(one["content"] or "")) for one in chat)


def test_a_count_says_what_is_wrong_with_more_than_the_messages() -> None:
    for chat, problem in ((["hello"], "is str"), ([], "empty"), ([{"role": "user"}], "content")):
        with pytest.raises(ConfigError, match=problem):
            pair_tokenizer(STRICT).count_chat(chat)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="knows no tools"):
        pair_tokenizer(STRICT).count_chat([USER], tools=TOOLS)
