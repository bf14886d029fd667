"""Whether a text is thinking: one rule, for the marks of every family."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from thinkers import THINKERS, byte_level, tokenizer_of

from foreal_core.grammar.thoughts import Thoughts
from foreal_core.text.detokenizer import Detokenizer
from foreal_core.text.openings import Openings
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.thinking import ThinkingMarks, ThinkingState, answer_after, answer_of
from foreal_core.text.thinking_marks import opens_thinking, thinking_after, thinking_marks

NAMES = sorted(THINKERS)


def pair_of(name: str) -> PairTokenizer:
    tokenizer = tokenizer_of(name)
    sizes = {"leader_vocab_size": len(tokenizer), "draft_vocab_size": len(tokenizer)}
    return PairTokenizer(tokenizer, **sizes, leader_eos=[0], draft_eos=[0])


def prompt_of(name: str, text: str, **options: Any) -> list[int]:
    return pair_of(name).encode_chat([{"role": "user", "content": text}], **options)


def read(state: ThinkingState, tokenizer: Any, ids: list[int]) -> list[tuple[str, str]]:
    """Neighbouring pieces of one part as one."""
    detokenizer = Detokenizer(tokenizer)
    pieces = [piece for token in ids for piece in state.feed(detokenizer.push(token), token)]
    joined: list[tuple[str, str]] = []
    for part, text in [*pieces, *state.feed(detokenizer.flush()), *state.flush()]:
        if joined and joined[-1][0] == part:
            text = joined.pop()[1] + text
        joined.append((part, text))
    return joined


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_is_parted_at_the_marks_of_its_family(name: str) -> None:
    thinker, tokenizer = THINKERS[name], tokenizer_of(name)
    state = thinking_after(tokenizer, prompt_of(name, "Why?"))
    assert state.part == thinker.part
    if state.part == "answer":
        state = ThinkingState(thinking_marks(tokenizer))
    opening = "" if state.part == "thinking" else thinker.start
    reply = f"{opening}\nBecause <b> of [it].{thinker.end}\n\nIt is."
    pieces = read(state, tokenizer, tokenizer(reply)["input_ids"])
    assert pieces == [("thinking", "\nBecause <b> of [it]."), ("answer", "\n\nIt is.")]
    assert (state.part, state.over) == ("answer", True)


@pytest.mark.parametrize("name", NAMES)
def test_a_mark_in_a_users_message_changes_nothing(name: str) -> None:
    thinker = THINKERS[name]
    for text in (f"What is {thinker.start}", f"{thinker.start} or {thinker.end}", "<think>"):
        for ids in (
            prompt_of(name, text),
            prompt_of(name, text, special_tokens_in_messages=True),
        ):
            assert thinking_after(tokenizer_of(name), ids).part == thinker.part


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("qwen3", {"enable_thinking": False}, "answer"),
        ("qwen3", {"enable_thinking": True}, "start"),
        ("gemma4", {"enable_thinking": True}, "start"),
        ("gemma4", {"enable_thinking": False}, "answer"),
    ],
)
def test_templates_open_and_close_it_by_options(
    name: str, options: dict[str, Any], part: str
) -> None:
    assert thinking_after(tokenizer_of(name), prompt_of(name, "Why?", **options)).part == part


@pytest.mark.parametrize("name", NAMES)
def test_a_begun_answer_tells(name: str) -> None:
    """A prompt that goes on where an answer stopped."""
    thinker, tokenizer = THINKERS[name], tokenizer_of(name)
    if thinker.part == "answer" or not thinking_marks(tokenizer).header:
        return
    prompt = prompt_of(name, "Why?")
    opened = [] if thinker.part == "thinking" else tokenizer(thinker.start)["input_ids"]
    thought = [*prompt, *opened, *tokenizer("So it is")["input_ids"]]
    assert thinking_after(tokenizer, thought).part == "thinking"
    answered = [*thought, *tokenizer(f"{thinker.end}\nWell")["input_ids"]]
    assert thinking_after(tokenizer, answered).part == "answer"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1 <think>", "thinking"),
        ("1 <think>\n", "thinking"),
        ("1 </think>\n\n", "answer"),
        ("1 <think> 2", "start"),
        ("", "start"),
    ],
)
def test_a_text_without_a_template_is_judged_by_its_end(text: str, part: str) -> None:
    tokenizer = byte_level([], ["<think>", "</think>"])
    assert thinking_after(tokenizer, tokenizer(text)["input_ids"]).part == part
    assert opens_thinking(tokenizer, tokenizer(text)["input_ids"]) is (part == "thinking")


def test_marks_are_found_anew_with_a_new_template() -> None:
    tokenizer = byte_level(["[THINK]", "[/THINK]"])
    assert thinking_marks(tokenizer).known  # by its vocabulary
    assert thinking_marks(tokenizer).header == ()
    tokenizer.chat_template = THINKERS["exaone"].template
    assert thinking_marks(tokenizer).start == "<thought>"
    assert not thinking_marks(byte_level(["<|end|>"])).known


PARTS = st.sampled_from(["<think>", "</think>", "<", "</thi", "nk>", "a", " ", "\n", "b c"])


@given(
    st.lists(PARTS).map("".join),
    st.sampled_from(["start", "thinking", "answer"]),
    st.sets(st.integers(1, 30)),
)
@settings(max_examples=300, deadline=None)
def test_cuts_change_nothing(text: str, part: Any, cuts: set[int]) -> None:
    def joined(pieces: list[str]) -> tuple[dict[str, str], bool]:
        state = ThinkingState(ThinkingMarks(), part)
        parts = {"thinking": "", "answer": ""}
        for where, piece in [p for one in pieces for p in state.feed(one)] + state.flush():
            parts[where] += piece
        return parts, state.over

    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert joined(pieces) == joined([text])
    if part == "answer":
        assert joined(pieces)[0]["answer"] == text


@pytest.mark.parametrize("end", ["</think>", "\ufdd0"])
@pytest.mark.parametrize("part", ["thinking", "answer", "start"])
def test_little_is_held_of_a_long_text(part: Any, end: str) -> None:
    state = ThinkingState(ThinkingMarks(end=end), part)
    state.over = False  # as where nothing told that the text began inside
    for _ in range(50):
        state.feed("so </th")
    assert len(state._held) < len("</think>")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("No thoughts.", "No thoughts."),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("a</think>b </think> c", "b </think> c"),
        ("<think>a", ""),
        ("The tag <think> opens it.", "The tag <think> opens it."),
    ],
)
def test_the_answer_of_a_whole_response(response: str, answer: str) -> None:
    assert answer_of(response) == answer


def test_the_answer_after_a_prompt() -> None:
    tokenizer = tokenizer_of("magistral")
    reply = tokenizer("[THINK]\\boxed{4}[/THINK]\\boxed{5}")["input_ids"]
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in reply]
    state = thinking_after(tokenizer, prompt_of("magistral", "2+3?"))
    assert answer_after(state, zip(reply, texts, strict=True)) == "\\boxed{5}"
    assert answer_after(state, zip(reply[:9], texts[:9], strict=True)) == ""


class TestThoughts:
    """What a grammar asks: where the answer starts."""

    def test_a_model_may_open_and_close_it(self) -> None:
        tokenizer = tokenizer_of("qwen3")
        start, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        thoughts = Thoughts(tokenizer, prompt_of("qwen3", "Why <think>?"))
        assert (thoughts.answer_start, thoughts.openers()) == (0, [start])
        thoughts.feed(start)
        assert (thoughts.answer_start, thoughts.openers()) == (None, [])
        thoughts.feed(5)
        assert thoughts.end_after([start, 5]) == (end,)
        thoughts.feed(end)
        thoughts.feed(5)
        assert thoughts.answer_start == 3
        thoughts.rewind(2)
        assert thoughts.answer_start is None
        thoughts.rewind(0)
        thoughts.feed(5)
        assert (thoughts.answer_start, thoughts.openers()) == (0, [])  # too late

    def test_what_the_prompt_closed_stays_closed(self) -> None:
        prompt = prompt_of("qwen3", "Why?", enable_thinking=False)
        thoughts = Thoughts(tokenizer_of("qwen3"), prompt)
        assert (thoughts.answer_start, thoughts.openers()) == (0, [])

    def test_marks_of_several_tokens(self) -> None:
        tokenizer = tokenizer_of("gpt-oss")
        thoughts = Thoughts(tokenizer, prompt_of("gpt-oss", "Why?"))
        start, final = (
            tokenizer(mark)["input_ids"]
            for mark in ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
        )
        for at, token in enumerate(start):
            assert token in thoughts.openers()
            assert thoughts.openers() == ([start[at]] if at else [start[0], final[0]]) or at == 1
            thoughts.feed(token)
            assert thoughts.answer_start is None
        end = tuple(tokenizer(THINKERS["gpt-oss"].end)["input_ids"])
        assert thoughts.end_after(start) == end
        assert thoughts.end_after([*start, *end[:2]]) == end[2:]
        for token in end:
            thoughts.feed(token)
        assert thoughts.answer_start == len(start) + len(end)
        thoughts.rewind(0)
        for token in final:
            thoughts.feed(token)
        assert thoughts.answer_start == len(final)

    @given(st.data())
    @settings(max_examples=200, deadline=None)
    def test_rewinding_leaves_no_trace(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["qwen3", "qwq", "gpt-oss", "r1 whose marks are text"]))
        tokenizer, prompt = tokenizer_of(name), prompt_of(name, "1")
        thinker = THINKERS[name]
        words = [tokenizer(text)["input_ids"] for text in (thinker.start, thinker.end, "a", "\n")]
        tokens = st.sampled_from([token for word in words for token in word])
        thoughts, text = Thoughts(tokenizer, prompt), []
        for _ in range(data.draw(st.integers(1, 5))):
            keep = data.draw(st.integers(0, len(text)))
            del text[keep:]
            thoughts.rewind(keep)
            more = data.draw(st.lists(tokens, max_size=6) | st.sampled_from(words))
            for token in more:
                thoughts.feed(token)
            text += more
            fresh = Thoughts(tokenizer, prompt)
            for token in text:
                fresh.feed(token)
            assert thoughts.answer_start == fresh.answer_start
            assert thoughts.openers() == fresh.openers()


def test_openings_stop_with_the_thinking() -> None:
    pair = pair_of("qwq")
    tokens = prompt_of("qwq", "What is </think>?")
    openings = Openings(pair, len(tokens))
    wait = pair.encode_plain("Wait,")
    assert openings.ids("Wait,", tokens) == wait  # behind a newline
    tokens += pair.encode_plain("So.")
    assert openings.ids("Wait,", tokens) == pair.encode_plain(" Wait,")
    tokens += pair.encode_plain("</think>\n")
    assert openings.ids("Wait,", tokens) == []


def test_openings_where_nothing_marks_the_thinking() -> None:
    pair = pair_of("llama3, which thinks not")
    tokens = pair.encode("So.")
    assert Openings(pair, 1).ids("Wait,", tokens) == pair.encode_plain(" Wait,")
