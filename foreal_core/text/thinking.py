"""The thinking before an answer: its marks, where it begins and is over, text that opens a
thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreal_core.text.pair_tokenizer import PairTokenizer

THINK_START, THINK_END = "<think>", "</think>"


def answer_of(text: str) -> str:
    """What stands after the thinking; nothing where that has not ended."""
    _, end, answer = text.rpartition(THINK_END)
    return "" if not end and THINK_START in answer else answer


def opens_thinking(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thinking part, as templates of reasoning models make it."""
    tail = str(tokenizer.decode(list(ids[-16:]), skip_special_tokens=False))
    return tail.rstrip().endswith(THINK_START)


def opening_ids(opening: str, context: Sequence[int], tokenizer: PairTokenizer) -> list[int]:
    """The ids of `opening`, text that a policy gives to the draft, with a blank before it where the
    text so far ends in none.

    Nothing once the thinking is over: an opening belongs to the thoughts, and the answer after
    them has a form to keep.
    """
    if _is_over(context, tokenizer):
        return []
    before = tokenizer.decode(context[-1:])
    blank = "" if not before or before[-1].isspace() else " "
    return tokenizer.encode_plain(blank + opening)


def _is_over(context: Sequence[int], tokenizer: PairTokenizer) -> bool:
    """Whether the last mark of thinking in `context` is its end; a vocabulary without the marks has
    thoughts only."""
    start, end = (tokenizer.id_of(mark) for mark in (THINK_START, THINK_END))
    for token in reversed(context):
        if token in (start, end):
            return token == end
    return False
