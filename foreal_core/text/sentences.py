"""Where a sentence ends, seen from its tokens' texts alone. Knows no models and no token ids.

"paper" mode is the rule of arXiv 2506.06998, a function of one text. "robust" mode knows all of
Unicode's sentence marks and what may close after them, drops or defers marks that end no sentence,
and makes no sentences of white space and delimiters.
"""

from __future__ import annotations

import enum
import re
import unicodedata
from functools import cache
from typing import Final, Literal, get_args

import regex

from foreal_core.config import SentenceBoundaryMode
from foreal_core.errors import ConfigError
from foreal_core.text.markup import LINE_LIMIT, MarkupReader, may_close, without_closing_tags

_PAPER_MARKS: Final = (".", "!", "?", "。", "！", "？")
_ELLIPSIS: Final = "…"
# Stand in numbers too, so the next character tells (class ATerm of UAX #29).
_DOTS: Final = ".․﹒．"
# Directly after a mark or its closers: the sentence goes on.
_GO_ON: Final = ",;:-/@=_，、；："
_TERMINAL = regex.compile(r"\p{Sentence_Terminal}")
# After a factorial: the formula goes on.
_GO_ON_WITH_FORMULA = regex.compile(r"[\p{Sm}\p{Ll}\p{Nd}(\[*/^·-]")


def _words(*rows: str) -> frozenset[str]:
    return frozenset(" ".join(rows).split())


# Never the end of a sentence; forms that are plain words as well ("in", "sat") are left out.
_ABBREVIATIONS: Final = _words(
    "vs cf viz eg ie approx resp fig figs eq eqs eqn eqns incl excl esp ca",
)
_TITLES: Final = _words(
    "Mr Mrs Ms Mx Dr Drs Prof St Mt Gen Col Lt Capt Sgt Cmdr Rev Hon Gov Sen Rep Pres Messrs",
    "Mme Mlle Def Thm Lem Prop Cor Rem",
)
# The end only where a capital (or a script without capitals) follows.
_MAY_END: Final = _words(
    "etc al inc ltd co corp jr sr bros dept univ est max min avg std ave blvd rd",
    "jan feb mar apr aug sept sep oct nov dec a.m p.m q.e.d ph.d b.c a.d",
)
# An abbreviation only where a number follows: "No. 5" against "Is it prime? No. Then".
_BEFORE_NUMBER: Final = _words("no nos nr p pp ch sec vol art par ex")

# Doubts that white space does not settle.
_LOOK_PAST_BLANKS: Final = ("capital", "number", "letter", "factorial")

# German: "am 3. Mai", "im 19. Jahrhundert"; but "I am 3. Then". And a day after a label that names
# a date, as many languages write it: "**Datum:** 3. Mai", "Dato: 3. maj".
_ORDINAL = re.compile(
    r"(?<!\w)(?:[Vv]om|[Zz]u[mr]|[Ii]m|[Bb]eim|[Dd](?:er|ie|as|e[mns])|(?<!\bI )[Aa]m) \d{1,3}\Z"
    r"|(?:[Dd]at(?:um|o)|[Tt]ermin)(?:[:*_]|</\w+>)*:(?:[*_]|</\w+>)* \d{1,2}\Z"
)
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_ENUMERATION = re.compile(r"(?:[>#*_+\-|\s]|<[A-Za-z][^<>]*>)*(?:\d{1,3}(?:\.\d{1,3})*|[A-Za-z])")

# Why a mark is pending: what follows must tell. "mark": "!" and "?", which stand in code and
# addresses too. "wide": marks of other scripts, which nothing but closers can delay. "factorial":
# "!" after what may be a number. "letter": a variable or one of "d. h.".
_Doubt = Literal["dot", "mark", "wide", "url", "capital", "number", "letter", "factorial"]


class Boundary(enum.Enum):
    """What one text means for the sentence that it was fed to.

    NONE: the sentence goes on. END: it ends after this text. PENDING: this text may be its end,
    the next one tells. END_BEFORE: the last pending text was the end; the text just fed was not
    consumed and opens the next sentence. BELONGS_BEFORE: everything since the last sentence's end,
    this text included, belongs to the sentence before; the present sentence has not begun.
    """

    NONE = "none"
    PENDING = "pending"
    END = "end"
    END_BEFORE = "end_before"
    BELONGS_BEFORE = "belongs_before"


def may_end_sentence(text: str, *, after_mark: bool = True) -> bool:
    """Whether a sentence can end with this text, in any mode.

    Args:
        text: of one token.
        after_mark: a sentence mark may stand right before it, whose end quotes, brackets and white
            space would move.
    """
    stem = text.rstrip()
    start = _tail_start(stem)
    continues = after_mark and start == 0 and bool(text)
    return "\n" in text or continues or any(map(_is_mark, stem[start:]))


class SentenceBoundaryDetector:
    """Finds sentence ends in a text that arrives token by token.

    Robust mode:

    - Marks are those of Unicode's Sentence_Terminal property and the ellipsis. Quotes, brackets and
      Markdown's emphasis directly after a mark belong to its sentence, in the same text or the
      next. So every mark that ends a text is pending until the next text. After such closers a
      lower-case letter means that the sentence goes on.
    - A "." ends nothing in a decimal, a dotted name ("example.com", "foo.bar()"), an abbreviation,
      a single initial ("J."), a German ordinal ("am 3. Mai", "Datum: 3. Mai") or an enumeration at
      the start of a sentence, line or cell ("1.", "2.3.", "a.", "<b>1.</b>"). White space, a
      capital, a script without capitals or a bracket after it settle it as an end; a digit, a
      lower-case letter, "_", another mark or one of ",;:-/@=" directly after it do not. "etc.",
      "No." and their like, an ellipsis and a single letter ("d. h.", "z. B.", "p. m.") look past
      white space.
    - Inside code and mathematics (see `MarkupReader`) marks end nothing; in an amount of money they
      count as usual, save the factorial in "$5!". In plain text a "!" after a number, a variable or
      a bracket is a factorial where a formula or a lower-case word follows.
    - A newline ends a sentence that has begun, whatever stands before it. White space, lines that
      hold no letter and no digit, and tags that close something ("</em>") make no sentence: they
      belong to the sentence before. What opens something (see `MarkupReader.end_line`) belongs to
      what follows.

    What has been decided depends on the text alone, not on its cuts. Everything kept is bounded;
    a feed costs O(len(text)).

    Raises:
        ConfigError: an unknown mode.
    """

    _doubt: _Doubt | None  # why the last mark is pending

    def __init__(self, mode: SentenceBoundaryMode = "robust") -> None:
        if mode not in get_args(SentenceBoundaryMode):
            raise ConfigError(
                f"sentence boundary mode {mode!r} is not allowed: it must be one of "
                + ", ".join(repr(known) for known in get_args(SentenceBoundaryMode))
                + "."
            )
        self._robust = mode == "robust"
        self._markup = MarkupReader()
        self._next_sentence()

    @property
    def has_begun(self) -> bool:
        """Whether what was fed since the last sentence's end can no longer belong to it."""
        began = self._content and not may_close(self._present)
        return not self._robust or began or self._opened

    def feed(self, text: str) -> Boundary:
        """Take the text of the next token ("" while it completes no character) and judge it."""
        if not self._robust:
            ends = "\n" in text or text.rstrip().endswith(_PAPER_MARKS)
            return Boundary.END if ends else Boundary.NONE
        if not text:
            return Boundary.NONE if self._doubt is None else Boundary.PENDING
        if self._doubt is None and text[-1].isalnum() and "\n" not in text:
            self._read_piece(text)
            return Boundary.NONE
        stem = text.rstrip()
        start = _tail_start(stem)
        if self._doubt is not None and not self._is_continued_by(stem, start):
            if self._settles(self._doubt, text):
                self._next_sentence()
                return Boundary.END_BEFORE
            self._doubt = None
        if self._doubt is None:
            start = next((i for i in range(start, len(stem)) if _is_mark(stem[i])), len(stem))
        ended = self._read(text[:start])
        for char in stem[start:]:
            self._doubt = self._after(char)
            self._read_piece(char)
        blank = text[len(stem) :]
        ended |= self._read(blank)
        if ended or self._ends_in(blank):
            self._next_sentence()
            return Boundary.END
        if self._doubt is not None:
            return Boundary.PENDING
        empty = not (self._content or self._opened or self._present)
        return Boundary.BELONGS_BEFORE if empty else Boundary.NONE

    def settle(self) -> None:
        """The text ends after a pending mark: then that mark was a sentence's end."""
        self._next_sentence()

    def _next_sentence(self) -> None:
        self._content = False  # the present sentence holds a letter or a digit
        self._opened = False  # it holds what opens something
        self._present = ""  # how it begins on this line, blanks aside
        self._doubt = None
        self._closer = ""  # the last one after the pending mark
        self._spaced = False  # white space follows the pending mark

    # -- marks ----------------------------------------------------------------------------------

    def _after(self, char: str) -> _Doubt | None:
        """The doubt after one more mark or closer."""
        if not _is_mark(char):
            if self._doubt is not None:
                self._closer = char
            return self._doubt
        self._closer, self._spaced = "", False
        return self._judge(char)

    def _judge(self, mark: str) -> _Doubt | None:
        """Why a mark at this place may end the sentence; None where it cannot."""
        self._markup.resolve(mark)
        if self._markup.span not in ("", "amount") or not self._content:
            return None
        last = self._markup.tail[-1:]
        if mark == _ELLIPSIS or (mark in _DOTS and last in (*_DOTS, _ELLIPSIS)):
            return "capital"
        if not mark.isascii():
            return "dot" if mark in _DOTS else "wide"
        if self._markup.url and last != ".":
            return "url"
        if mark == ".":
            return self._judge_dot()
        if mark == "!" and self._markup.span == "amount":
            return None if last.isdigit() else "mark"
        word = self._markup.word
        is_term = last.isdecimal() or last == ")" or (len(word) == 1 and word.isascii())
        return "factorial" if mark == "!" and is_term else "mark"

    def _judge_dot(self) -> _Doubt | None:
        if any(map(_ENUMERATION.fullmatch, (self._markup.line, self._present))):
            return None
        word = self._markup.word.strip("_")
        if (len(word) == 1 and word.isupper()) or _ORDINAL.search(self._markup.tail):
            return None
        folded = word.lower()
        if folded in _BEFORE_NUMBER:
            return "number"
        if folded in _MAY_END:
            return "capital"
        if word in _TITLES or folded in _ABBREVIATIONS or _DOTTED.fullmatch(word):
            return None
        return "letter" if len(word) == 1 and word.islower() else "dot"

    def _is_continued_by(self, stem: str, tail: int) -> bool:
        """Whether a text only adds marks, closers or white space to the pending mark."""
        if not stem:
            return True
        return tail == 0 and not self._spaced and (_is_mark(stem[0]) or self._closes(stem[0]))

    def _closes(self, char: str) -> bool:
        """Whether a character directly after the pending mark closes something. In Chinese the
        opening quote stands there; in German and Danish it closes."""
        opens = self._doubt == "wide" and unicodedata.category(char) == "Pi"
        return _is_closer(char) and not opens

    def _settles(self, doubt: _Doubt, text: str) -> bool:
        """Whether a text that does not continue the pending mark makes it an end."""
        while not self._spaced and self._closes(text[0]):
            self._closer, text = text[0], text[1:]
        first, following = text[0], text.lstrip()[0]
        if not (first.isspace() or self._spaced):
            return self._settles_directly(doubt, first)
        if "\n" in text[: len(text) - len(text.lstrip())] or doubt == "wide":
            return True
        if doubt == "number":
            afternoon = following.islower() and self._markup.tail.rstrip().endswith(" p.")
            return not (following.isdecimal() or following in "(#" or afternoon)
        if doubt == "letter":
            example = following == "B" and self._markup.tail.rstrip().endswith("z.")
            return not (following.islower() or example)
        if doubt == "factorial":
            return not _GO_ON_WITH_FORMULA.match(following)
        if doubt == "capital":
            return following.isalpha() and not following.islower()
        return not (self._closer and following.islower())

    def _settles_directly(self, doubt: _Doubt, first: str) -> bool:
        """The same where no white space follows the mark and its closers."""
        if doubt == "url" and not self._closer:
            return not first.isascii() or first in "<>\"'()[]{}"
        if first in _GO_ON or _is_mark(first):
            return False
        if doubt == "wide":
            return True
        if first.islower() or first.isdecimal():
            return False
        if first.isupper() and self._closer and _is_loose(self._closer):
            return False
        if first == "$" and self._markup.span == "amount":
            return False
        if doubt == "number":
            return first not in "(#"
        if doubt == "factorial":
            return not _GO_ON_WITH_FORMULA.match(first)
        return doubt != "capital" or first.isalpha()

    def _ends_in(self, blank: str) -> bool:
        """Whether white space settles the pending mark by itself; if not, the next text does."""
        if not blank or self._doubt is None:
            return False
        self._spaced = True
        return self._doubt not in _LOOK_PAST_BLANKS and not self._closer

    # -- lines ----------------------------------------------------------------------------------

    def _read(self, text: str) -> bool:
        """Reads on; whether a sentence ended at a newline."""
        ended = False
        *lines, rest = text.split("\n")
        for line in lines:
            self._read_piece(line)
            ended |= self._end_line()
        self._read_piece(rest)
        return ended

    def _read_piece(self, text: str) -> None:
        self._markup.read(text)
        if len(self._present) < LINE_LIMIT:
            self._present = (self._present + text).lstrip()[:LINE_LIMIT]
        self._content = self._content or any(map(str.isalnum, text))
        behind = without_closing_tags(self._present)
        if behind != self._present:
            self._present, self._content = behind, any(map(str.isalnum, behind))

    def _end_line(self) -> bool:
        kind = self._markup.end_line(self._present, content=self._content)
        if kind == "content":
            self._next_sentence()
            return True
        self._opened = self._opened or kind == "opening"
        self._content, self._present, self._doubt = False, "", None
        return False


def _tail_start(stem: str) -> int:
    """Where the marks and closers begin that a text ends with."""
    start = len(stem)
    while start and (_is_mark(stem[start - 1]) or _is_closer(stem[start - 1])):
        start -= 1
    return start


@cache
def _is_mark(char: str) -> bool:
    return char == _ELLIPSIS or _TERMINAL.match(char) is not None


@cache
def _is_closer(char: str) -> bool:
    return _is_loose(char) or unicodedata.category(char) in ("Pe", "Pf")


def _is_loose(char: str) -> bool:
    """Whether a character closes after a mark, but opens before a letter."""
    return char in "\"'*_~" or unicodedata.category(char) == "Pi"
