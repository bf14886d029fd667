"""Stop strings count behind the thinking; an empty answer says why it is empty."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings as examples, strategies as st
from toy import pair, scripted_pair, vocabulary

from foreal_core import FoReaLConfig, FoReaLDecoder, Generation
from foreal_core.request.stop_rule import StopRule
from foreal_core.text.pair_tokenizer import PairTokenizer

# A word, a thought in which the stop string stands, an answer in which it stands again.
SCRIPT = {
    " =": "<think>",
    "<think>": " so",
    " so": " Wait",
    " Wait": "</think>",
    "</think>": " x",
    " x": " y",
    " y": " Hmm",
}


def answered(script: dict[str, str] = SCRIPT, **settings: Any) -> Generation:
    two = scripted_pair(script, script)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        plain = decoder.generate(" =", policy="leader", max_new_tokens=12, **settings)
        stream = decoder.stream(" =", policy="speculative", max_new_tokens=12, **settings)
        assert "".join(event.text for event in stream) == stream.result.text == plain.text
        assert stream.result.token_ids == plain.token_ids
        assert stream.result.warnings == plain.warnings
    assert plain.to_dict()["warnings"] == plain.warnings
    return plain


def test_a_stop_string_in_the_thinking_ends_nothing() -> None:
    written = answered(stop=" Wait")
    assert (written.end_reason, written.warnings) == ("eos", ())
    assert written.text == "<think> so Wait</think> x y Hmm"


def test_a_stop_string_behind_the_thinking_ends_the_text() -> None:
    written = answered(stop=[" Wait", " y"])
    assert (written.end_reason, written.stop_string) == ("stop_string", " y")
    assert written.text == "<think> so Wait</think> x"
    assert written.warnings == ()


def test_a_setting_lets_stop_strings_count_in_the_thinking() -> None:
    written = answered(stop=" Wait", stop_in_thinking=True)
    assert (written.text, written.end_reason) == ("<think> so", "stop_string")
    [warning] = written.warnings
    assert "' Wait' came in its thinking" in warning


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_new_tokens": 3}, "limit of 3 tokens came in its thinking: raise max_new_tokens"),
        ({"stop": " x"}, "the stop string ' x' came first"),
        ({"max_new_tokens": 4}, "limit of 4 tokens came first"),
    ],
    ids=str,
)
def test_an_empty_answer_says_why(settings: dict[str, Any], says: str) -> None:
    two = scripted_pair(SCRIPT, SCRIPT)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder:
        written = decoder.generate(" =", policy="leader", **settings)
    assert says in " ".join(written.warnings)


def test_a_model_that_says_nothing_is_named() -> None:
    at_once = answered({" so": " =", "</think>": " =", "<think>": " ="})
    assert (at_once.text, at_once.warnings) == (
        "", ("the answer is empty: the model ended the text at once.",)
    )  # fmt: skip
    thinking = answered({" =": "<think>", "<think>": " so", " x": "</think>"})
    assert thinking.warnings == ("the answer is empty: the model ended the text in its thinking.",)


TOKENIZER = pair("qwen2").tokenizer
PAIR_TOKENIZER = PairTokenizer(
    TOKENIZER,
    leader_vocab_size=len(vocabulary()),
    draft_vocab_size=len(vocabulary()),
    leader_eos=[0],
    draft_eos=[0],
)


@examples(max_examples=150, deadline=None, derandomize=True)
@given(
    before=st.text("ab <", max_size=8),
    thought=st.none() | st.text("ab ", max_size=8),
    answer=st.text("ab <t", max_size=12),
    stops=st.lists(st.sampled_from(("a", "ab", "b a", "<", "  ", "bb")), min_size=1, max_size=2),
    cuts=st.lists(st.integers(0, 45), max_size=8),
    min_tokens=st.integers(0, 3),
)
def test_what_is_shown_ends_before_the_first_stop_string_that_counts(
    before: str,
    thought: str | None,
    answer: str,
    stops: Sequence[str],
    cuts: list[int],
    min_tokens: int,
) -> None:
    """However the text is cut into tokens: thinking, if there is one, opens the text."""
    opened = "" if thought is None else f"<think>{thought}"
    closed = "" if thought is None else "</think>"
    text = opened + closed + before + answer
    edges = sorted({0, len(text), *(at for at in cuts if at < len(text))})
    tokens = [text[a:b] for a, b in pairwise(edges)]
    counted = max(len(opened + closed), sum(map(len, tokens[:min_tokens])))
    assume(thought is None or "<" not in stops)  # the mark's own
    config = FoReaLConfig(stop=stops, min_tokens=min_tokens)
    rule, shown = StopRule(config, PAIR_TOKENIZER, [5]), ""
    for index, one in enumerate(tokens):
        shown += rule.push(index, 5, one)
        if rule.hit is not None:
            break
    else:
        shown += rule.flush(len(tokens) - 1, "")
    found = [at for stop in stops if (at := text.find(stop, counted)) >= 0]
    if rule.hit is None:
        assert not found
        assert shown == text
    else:
        assert found
        assert text.startswith(shown + rule.hit)
        assert len(shown) >= counted
        assert min(found) <= len(shown)
