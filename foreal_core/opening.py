"""Text that a policy gives to the draft, as token ids that continue the text so far."""

from __future__ import annotations

from collections.abc import Sequence

from foreal_core.tokenizer import PairTokenizer

_THINK_MARKS = ("<think>", "</think>")


def opening_ids(opening: str, context: Sequence[int], tokenizer: PairTokenizer) -> list[int]:
    """The ids of `opening`, with a blank before it where the text so far ends in none.

    Nothing once the thinking is over: an opening belongs to the thoughts, and the answer after
    them has a form to keep. A vocabulary without the marks of thinking has thoughts only.
    """
    if _thinking_is_over(context, tokenizer):
        return []
    before = tokenizer.decode(context[-1:])
    blank = "" if not before or before[-1].isspace() else " "
    return tokenizer.encode_plain(blank + opening)


def _thinking_is_over(context: Sequence[int], tokenizer: PairTokenizer) -> bool:
    start, end = (tokenizer.id_of(mark) for mark in _THINK_MARKS)
    for token in reversed(context):
        if token in (start, end):
            return token == end
    return False
