"""What a written token did to its text."""

from __future__ import annotations

from enum import Enum


class Written(Enum):
    """The effect of a written token on the text.

    GOES_ON: nothing more. BELONGS_BEFORE: the present sentence held white space and closing
    delimiters only; they went to the sentence before. SENTENCE_END: the sentence ended with it.
    SETTLED: a pending mark before it was the sentence's end; it is in `taken_back`. FINISHED: the
    text is over.
    """

    GOES_ON = "goes_on"
    BELONGS_BEFORE = "belongs_before"
    SENTENCE_END = "sentence_end"
    SETTLED = "settled"
    FINISHED = "finished"
