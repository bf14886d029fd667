"""How a model marks its thinking, and where a prompt leaves it.

The marks are found out once per chat template. Where a prompt stands follows from the assistant's
own part of it alone, which starts behind the last generation prompt: a mark in a user's message
changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from foreal_core.text.detokenizer import decode
from foreal_core.text.template_trials import found_once
from foreal_core.text.thinking import THINK_END, THINK_START, ThinkingMarks, ThinkingState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What opens a thinking, what closes it, and what may open an answer that has none.
_KNOWN: Final = (
    (THINK_START, THINK_END, ""),  # Qwen 3, DeepSeek R1 and most others
    ("[THINK]", "[/THINK]", ""),  # Magistral
    ("<thought>", "</thought>", ""),  # EXAONE Deep
    ("<seed:think>", "</seed:think>", ""),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>", ""),  # Command A Reasoning
    ("<|channel>thought\n", "<channel|>", ""),  # Gemma 4
    (
        "<|channel|>analysis<|message|>",  # gpt-oss
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
)
_TAG = re.compile(r"[<\[].*?[>\]]")
# Noncharacters stand for the special tokens of marks: no text shows those, and none holds these.
_FIRST_STAND_IN: Final = 0xFDD0
_TAIL: Final = 16  # tokens that the marks at a prompt's end are looked for in


def thinking_marks(tokenizer: PreTrainedTokenizerBase) -> ThinkingMarks:
    """How the model of a tokenizer marks its thinking: by what its template opens an answer with,
    else by what the template names, else by the vocabulary. Found once per template."""
    return found_once(tokenizer, "thinking marks", lambda: _find(tokenizer))


def _find(tokenizer: PreTrainedTokenizerBase) -> ThinkingMarks:
    opening = _generation_prompt(tokenizer)
    template = str(tokenizer.chat_template or "")
    found = _known_to(str(tokenizer.decode(opening)), template, tokenizer.get_added_vocab())
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    stand_ins: dict[int, str] = {}

    def spelled(mark: str) -> tuple[str, tuple[int, ...]]:
        ids = tokenizer(mark, add_special_tokens=False, verbose=False)["input_ids"] if mark else ()
        for token in special.intersection(ids):
            stand_ins.setdefault(token, chr(_FIRST_STAND_IN + len(stand_ins)))
            mark = mark.replace(tokenizer.convert_ids_to_tokens(token), stand_ins[token])
        return mark, tuple(ids)

    start, end, answer = map(spelled, found or _KNOWN[0])
    marks = ThinkingMarks(
        start=start[0],
        end=end[0],
        answer=answer[0],
        start_ids=start[1],
        end_ids=end[1],
        answer_ids=answer[1],
        known=found is not None,
        stand_ins=stand_ins,
    )
    return replace(marks, header=_header(tokenizer, marks, opening))


def _known_to(
    generation_prompt: str, template: str, added: Collection[str]
) -> tuple[str, str, str] | None:
    for place in (generation_prompt, template):
        for marks in _KNOWN:
            if _tag(marks[0]) in place or marks[1] in place:
                return marks
    return next((marks for marks in _KNOWN if {*map(_tag, marks[:2])} <= set(added)), None)


def _tag(mark: str) -> str:
    """The first tag of a mark: what follows may be escaped in a template."""
    tag: str = _TAG.findall(mark)[0]
    return tag


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the chat template puts behind a chat for the answer to begin with."""
    question = [{"role": "user", "content": "1"}]
    try:
        asked, prompt = (
            tokenizer.apply_chat_template(
                question, tokenize=True, return_dict=False, add_generation_prompt=added
            )
            for added in (False, True)
        )
    except Exception:
        return []  # there is no template, or it takes no such question
    return prompt[len(asked) :] if prompt[: len(asked)] == asked else []


def _header(
    tokenizer: PreTrainedTokenizerBase, marks: ThinkingMarks, opening: Sequence[int]
) -> tuple[int, ...]:
    """The generation prompt without marks and without white space at its end."""
    pieces = _spelled(tokenizer, marks, opening)
    text = "".join(pieces)
    places = [at for mark in (marks.start, marks.end) if (at := text.find(mark)) >= 0]
    length = min(places, default=len(text))
    ends = accumulate(map(len, pieces))
    header = [
        (token, piece)
        for token, piece, end in zip(opening, pieces, ends, strict=True)
        if end <= length
    ]
    while header and header[-1][1].isspace():
        header.pop()
    return tuple(token for token, _ in header)


def _spelled(
    tokenizer: PreTrainedTokenizerBase, marks: ThinkingMarks, ids: Iterable[int]
) -> list[str]:
    """The text of each id, stand-ins for the special tokens of marks."""
    return [marks.stand_ins.get(i, "") + decode(tokenizer, [i]) for i in ids]


def thinking_after(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    shown: Mapping[int, str] | None = None,
) -> ThinkingState:
    """Where a prompt ends: what the assistant's own part of it says; of a prompt without one, the
    mark that it ends with.

    Args:
        tokenizer: the leader's.
        ids: of the prompt.
        shown: see `ThinkingState`.
    """
    marks = thinking_marks(tokenizer)
    start = _behind_last(ids, marks.header)
    if start is not None:
        state = ThinkingState(marks, shown=shown)
        for token in ids[start:]:
            state.feed(decode(tokenizer, [token]), token)
        return state
    # Other special tokens show no text, but nothing before them is at the end.
    pieces = (piece or "\0" for piece in _spelled(tokenizer, marks, ids[-_TAIL:]))
    tail = "".join(pieces).rstrip()
    if tail.endswith(marks.start.rstrip()):
        return ThinkingState(marks, "thinking", shown)
    return ThinkingState(marks, "answer" if tail.endswith(marks.end) else "start", shown)


def opens_thinking(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thinking part, as templates of reasoning models make it."""
    return thinking_after(tokenizer, ids).part == "thinking"


def _behind_last(ids: Sequence[int], part: tuple[int, ...]) -> int | None:
    """Where the last occurrence of `part` ends; None where it is empty or does not occur."""
    size = len(part)
    if not size:
        return None
    ends = range(len(ids), size - 1, -1)
    return next((end for end in ends if tuple(ids[end - size : end]) == part), None)
