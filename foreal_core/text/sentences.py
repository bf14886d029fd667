"""Where a sentence ends, seen from its tokens' texts alone. Knows no models and no token ids.

"paper" mode is the rule of arXiv 2506.06998, a function of one text. "robust" mode starts from the
same candidates and drops or defers those that end no sentence; it never ends where the paper's
rule does not, save by the delay of a pending mark. A newline always ends, in both modes.
"""

from __future__ import annotations

import enum
import re
from typing import Final, Literal, get_args

from foreal_core.config import SentenceBoundaryMode
from foreal_core.errors import ConfigError

_MARKS: Final = (".", "!", "?", "。", "！", "？")
_WIDE_MARKS: Final = "。！？"


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

_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_ENUMERATION = re.compile(r"[>#*_+\-\s]*(?:\d{1,3}(?:\.\d{1,3})*|[A-Za-z])")
_FENCE = re.compile(r"(`{3,}|~{3,})\s*")

# More than any abbreviation or enumeration needs; what is longer is none.
_WORD_LIMIT: Final = 12
_LINE_LIMIT: Final = 24

_Span = Literal["", "code", "fence", "amount", "$", "$$", "\\(", "\\["]
_Doubt = Literal["dot", "url", "capital", "number"]


class Boundary(enum.Enum):
    """What one text means for the sentence that it was fed to.

    NONE: the sentence goes on. END: it ends after this text. PENDING: this text may be its end,
    the next one tells. END_BEFORE: the pending text was the end; the text just fed was not
    consumed and opens the next sentence.
    """

    NONE = "none"
    PENDING = "pending"
    END = "end"
    END_BEFORE = "end_before"


def may_end_sentence(text: str) -> bool:
    """The paper's rule: a newline anywhere, or a mark at the end, white space aside."""
    return "\n" in text or text.rstrip().endswith(_MARKS)


class SentenceBoundaryDetector:
    """Finds sentence ends in a text that arrives token by token.

    Robust mode, beyond the paper's rule:

    - A "." ends nothing in a decimal, a dotted name ("example.com", "foo.bar()"), an ellipsis, an
      abbreviation, a single initial ("J.") or an enumeration at a line's start ("1.", "2.3.",
      "a."). Where only the next text can tell, it is pending: white space, a capital, a script
      without capitals or a bracket settle it as an end; a digit, a lower-case letter, "_", another
      mark or one of ",;:-/@" directly after it do not.
    - "!", "?" and the wide marks end at once; in a URL "!" and "?" wait for the next text.
    - Inside `code` and ```fenced``` code marks end nothing. Inline code ends at its line; three
      or more backticks that a newline interrupts open a fence.
    - Inside $...$, $$...$$, \\(...\\) and \\[...\\] marks end nothing. An unclosed "$" ends with
      its line, the others with the next blank line. As in pandoc, a "$" before white space or
      closing punctuation opens nothing, and one after white space closes nothing. "$" before a
      digit may be money: marks count as usual up to the closing "$" or to TeX ("^", "{",
      "\\name"), save the factorial in "$5!".

    What has been decided depends on the text alone, not on its cuts, with one exception: "etc.",
    "No." and their like look at the first text after them, past its white space.

    Everything kept is bounded and flat (`copy.copy` copies it); a feed costs O(len(text)).

    Raises:
        ConfigError: an unknown mode.
    """

    def __init__(self, mode: SentenceBoundaryMode = "robust") -> None:
        if mode not in get_args(SentenceBoundaryMode):
            raise ConfigError(
                f"sentence boundary mode {mode!r} is not allowed: it must be one of "
                + ", ".join(repr(known) for known in get_args(SentenceBoundaryMode))
                + "."
            )
        self._robust = mode == "robust"
        self._doubt: _Doubt | None = None  # why the last mark is pending
        self._span: _Span = ""
        self._fence = ""  # the opening run of the code span or fence
        self._ticks = 0  # backticks in the current run
        self._dollar = False  # a "$" whose meaning the next character tells
        self._escaped = False  # the last character is an unescaped backslash
        self._url = False
        self._tail = ""  # the last three characters
        self._word = ""  # the tail of letters, digits, "." and "_"
        self._line = ""  # how the line begins, blanks aside

    def feed(self, text: str) -> Boundary:
        """Take the text of the next token ("" while it completes no character) and judge it."""
        if not self._robust:
            return Boundary.END if may_end_sentence(text) else Boundary.NONE
        if self._doubt is not None:
            if not text:
                return Boundary.PENDING
            doubt, self._doubt = self._doubt, None
            if self._settles(doubt, text):
                return Boundary.END_BEFORE
        if not may_end_sentence(text):
            self._read(text)
            return Boundary.NONE
        if "\n" in text:
            self._read(text)
            return Boundary.END
        body = text.rstrip()
        self._read(body[:-1])
        verdict = self._judge(body[-1])
        space = text[len(body) :]
        self._read(body[-1] + space)
        if isinstance(verdict, Boundary):
            return verdict
        if space:
            return Boundary.END if self._settles(verdict, space) else Boundary.NONE
        self._doubt = verdict
        return Boundary.PENDING

    def settle(self) -> None:
        """The text ends after a pending mark: then that mark was a sentence's end."""
        self._doubt = None

    def _judge(self, mark: str) -> Boundary | _Doubt:
        """What a mark is at this place: END, NONE, or the doubt that makes it pending."""
        self._resolve_openers(mark)
        if self._span not in ("", "amount"):
            return Boundary.NONE
        if mark in _WIDE_MARKS:
            return Boundary.END
        last = self._tail[-1:]
        if self._url and last != ".":
            return "url"
        if mark != ".":
            factorial = mark == "!" and self._span == "amount" and last.isdigit()
            return Boundary.NONE if factorial else Boundary.END
        return self._judge_dot(last)

    def _judge_dot(self, last: str) -> Boundary | _Doubt:
        if last == "." or _ENUMERATION.fullmatch(self._line):
            return Boundary.NONE
        word = self._word.strip("_")
        if len(word) == 1 and word.isupper():
            return Boundary.NONE
        folded = word.lower()
        if folded in _BEFORE_NUMBER:
            return "number"
        if folded in _MAY_END:
            return "capital"
        if word in _TITLES or folded in _ABBREVIATIONS or _DOTTED.fullmatch(word):
            return Boundary.NONE
        return "dot"

    def _settles(self, doubt: _Doubt, text: str) -> bool:
        """Whether `text`, directly after the pending mark, makes that mark an end."""
        first = text[0]
        if doubt == "url":
            return first.isspace() or not first.isascii() or first in "<>\"'()[]{}"
        if first.islower() or first.isdecimal() or first in "._!?,;:-/@":
            return False
        if first == "$" and self._span == "amount":
            return False
        if doubt == "dot" or "\n" in text[: len(text) - len(text.lstrip())]:
            return True
        following = text.lstrip()[:1]
        if doubt == "number":
            return following != "" and not following.isdecimal() and following not in "(#"
        return following.isalpha() and not following.islower()

    def _read(self, text: str) -> None:
        if self._reads_plainly(text):
            self._read_word(text)
            return
        for char in text:
            self._resolve_openers(char)
            if char == "\n":
                self._end_line()
                continue
            literal = self._escaped
            if self._span not in ("code", "fence"):
                self._read_maths(char)
            if char == "`" and self._span in ("", "amount", "code") and not literal:
                self._ticks += 1
            self._remember(char)

    def _reads_plainly(self, text: str) -> bool:
        """Whether `text` is a blank and a word, as most tokens are, in a plain place."""
        plain = not (self._span or self._ticks or self._dollar or self._escaped)
        return plain and text[:1] == " " and text[1:].isalnum()

    def _read_word(self, text: str) -> None:
        """What reading `text` character by character comes to."""
        self._tail = (self._tail + text)[-3:]
        self._word = text[1:][-_WORD_LIMIT:]
        self._url = False
        if len(self._line) < _LINE_LIMIT:
            self._line = (self._line + (text if self._line else text[1:]))[:_LINE_LIMIT]

    def _resolve_openers(self, char: str) -> None:
        """Settle a run of backticks or a "$" that ended before `char`."""
        if self._ticks and char != "`":
            if self._span != "code":
                self._span, self._fence = "code", "`" * min(self._ticks, _LINE_LIMIT)
            elif self._ticks == len(self._fence):
                self._span = ""
            self._ticks = 0
        if self._dollar and char != "$":
            self._dollar = False
            if self._span == "$$":
                pass
            elif char.isdecimal():
                self._span = "amount"
            elif not char.isspace() and char not in _MARKS and char not in ",;:)]}\"'":
                self._span = "$"

    def _read_maths(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
            if char in "([" and self._span in ("", "amount"):
                self._span = "\\(" if char == "(" else "\\["
            elif (char == ")" and self._span == "\\(") or (char == "]" and self._span == "\\["):
                self._span = ""
            elif char.isalpha() and self._span == "amount":
                self._span = "$"
        elif char == "\\":
            self._escaped = True
        elif char == "$":
            self._read_dollar()
        elif char in "^{" and self._span == "amount":
            self._span = "$"

    def _read_dollar(self) -> None:
        if self._span in ("\\(", "\\["):
            return
        if self._dollar:
            self._dollar = False
            self._span = "" if self._span == "$$" else "$$"
        elif self._span in ("$", "amount"):
            self._span = ""
            self._dollar = self._tail[-1:].isspace()
        else:
            self._dollar = True

    def _remember(self, char: str) -> None:
        self._tail = self._tail[-2:] + char
        if char.isalnum() or char in "._":
            self._word = (self._word + char)[-_WORD_LIMIT:]
            self._url = char.isascii() and (self._url or self._word.lower() == "www.")
        else:
            dotted = char == "/" and "." in self._word.strip(".")
            ends = char.isspace() or not char.isascii() or char in "<>\"'()[]{}"
            self._url = not ends and (self._url or dotted or self._tail == "://")
            self._word = ""
        if len(self._line) < _LINE_LIMIT and (self._line or not char.isspace()):
            self._line += char

    def _end_line(self) -> None:
        if self._span == "fence":
            closing = _FENCE.fullmatch(self._line)
            if closing and closing[1].startswith(self._fence):
                self._span = ""
        elif self._span == "code":
            self._span = "fence" if len(self._fence) >= 3 else ""
        elif self._line.startswith("~~~"):
            self._span, self._fence = "fence", "~~~"
        elif self._span in ("$", "amount") or not self._line:
            self._span = ""
        self._escaped = self._url = False
        self._line = self._word = ""
        self._tail = "\n"
