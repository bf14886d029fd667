"""Where in a line of Markdown a text stands: code, mathematics, an address, an amount of money."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

import regex

Span = Literal["", "code", "fence", "amount", "$", "$$", "\\(", "\\["]
LineKind = Literal["blank", "opening", "closing", "content"]

# More than any abbreviation, enumeration or delimiter needs; what is longer is none.
WORD_LIMIT: Final = 12
LINE_LIMIT: Final = 24

_BLOCKS: Final = ("fence", "$$", "\\[")
_FENCE = re.compile(r"(`{3,}|~{3,})\s*")
# The marks of a heading or a quote, an item's bullet, box or number.
_NUMBER = r"[*_]{0,3}[(\[]?(?:\d{1,3}(?:\.\d{1,3})*|[A-Za-z]|[ivxIVX]{2,5})[.)\]:]+[*_]{0,3}"
_ITEM = re.compile(rf"[>\s]*(?:#{{1,6}}|(?:[-*+•◦▪‣–]\s*)?(?:{_NUMBER}|\[[ xX]\])?)")
_OPENING = re.compile(r"\\begin\{[A-Za-z]+\*?\}(?:[\[{].*[\]}])?|<[A-Za-z][^<>]*>")
_CLOSING_TAG = r"</[A-Za-z][^<>]*>"
_CLOSING_TAGS = re.compile(rf"(?:{_CLOSING_TAG}\s*)+")
_CLOSING = regex.compile(rf"\\end\{{[A-Za-z]+\*?\}}[.,;:]?|{_CLOSING_TAG}")


class MarkupReader:
    """Reads a text character by character, line by line; all that it keeps is bounded.

    - Three or more backticks that a newline interrupts open a fence, as "~~~" does at a line's
      start; inline code ends at its line.
    - An unclosed "$" ends with its line, "$$", "\\(" and "\\[" with the next blank line. As in
      pandoc, a "$" before white space or closing punctuation opens nothing, and one after white
      space closes nothing. "$" before a digit is an amount up to the closing "$" or to TeX
      ("^", "{", "\\name").

    Attributes:
        span: what the place is inside of; "" for plain text.
        url: it is inside an address.
        tail: the last characters of the line.
        word: the tail of letters, digits, "." and "_".
        line: how the line, or the cell of a table, begins, blanks aside.
    """

    def __init__(self) -> None:
        self.span: Span = ""
        self.url = False
        self.tail = ""
        self.word = ""
        self.line = ""
        self._line_span: Span = ""  # the span where the line began
        self._fence = ""  # the opening run of the code span or fence
        self._ticks = 0  # backticks in the current run
        self._dollar = False  # a "$" whose meaning the next character tells
        self._escaped = False  # the last character is an unescaped backslash

    def read(self, text: str) -> None:
        """Read a piece of a line."""
        if self._reads_plainly(text):
            self._read_word(text)
            return
        for char in text:
            self.resolve(char)
            literal = self._escaped
            if self.span not in ("code", "fence"):
                self._read_maths(char)
            if char == "`" and self.span in ("", "amount", "code") and not literal:
                self._ticks += 1
            self._remember(char)

    def resolve(self, char: str) -> None:
        """Settle a run of backticks or a "$" that ended before `char`."""
        if self._ticks and char != "`":
            if self.span != "code":
                self.span, self._fence = "code", "`" * min(self._ticks, LINE_LIMIT)
            elif self._ticks == len(self._fence):
                self.span = ""
            self._ticks = 0
        if self._dollar and char != "$":
            self._dollar = False
            if self.span == "$$":
                pass
            elif char.isdecimal():
                self.span = "amount"
            elif not char.isspace() and char not in ".!?。！？" and char not in ",;:)]}\"'":
                self.span = "$"

    def end_line(self, end: str, *, content: bool) -> LineKind:
        """Read a newline, and tell what the end of the line is to the sentences around it.

        Opening: nothing but what opens something (a fence with its info string, "\\[", "$$", "{",
        the marks of a heading or quote, an item's bullet or number, "\\begin{...}", "<tag>").
        Closing: nothing but what closes something ("\\]", a fence, "}", "\\end{...}", "</tag>"),
        or a rule.

        Args:
            end: how the part in question begins, blanks aside, at most `LINE_LIMIT` characters.
            content: that part holds a letter or a digit.
        """
        self.resolve("\n")
        before = self._line_span
        self._close_spans()
        opened = self.span in _BLOCKS and self.span != before
        self._line_span = self.span
        self._escaped = self.url = False
        self.line = self.word = ""
        self.tail = "\n"
        end = end.rstrip()
        if not end:
            return "blank"
        if opened and (not content or end.startswith(("```", "~~~"))):
            return "opening"
        if len(end) < LINE_LIMIT:
            if _OPENING.fullmatch(end) or (before not in _BLOCKS and _ITEM.fullmatch(end)):
                return "opening"
            if _CLOSING.fullmatch(end):
                return "closing"
            if not content and unicodedata.category(end[-1]) == "Ps":
                return "opening"
        return "content" if content else "closing"

    def _close_spans(self) -> None:
        """What a newline does to code and mathematics."""
        if self.span == "fence":
            closing = _FENCE.fullmatch(self.line)
            if closing and closing[1].startswith(self._fence):
                self.span = ""
        elif self.span == "code":
            self.span = "fence" if len(self._fence) >= 3 else ""
        elif self.line.startswith("~~~"):
            self.span, self._fence = "fence", "~~~"
        elif self.span in ("$", "amount") or not self.line:
            self.span = ""

    def _reads_plainly(self, text: str) -> bool:
        """Whether `text` is a blank and a word, as most tokens are, in a plain place."""
        plain = not (self.span or self._ticks or self._dollar or self._escaped)
        return plain and text[:1] == " " and text[1:].isalnum()

    def _read_word(self, text: str) -> None:
        """What reading `text` character by character comes to."""
        self.tail = (self.tail + text)[-LINE_LIMIT:]
        self.word = text[1:][-WORD_LIMIT:]
        self.url = False
        if len(self.line) < LINE_LIMIT:
            self.line = (self.line + (text if self.line else text[1:]))[:LINE_LIMIT]

    def _read_maths(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
            if char in "([" and self.span in ("", "amount"):
                self.span = "\\(" if char == "(" else "\\["
            elif (char == ")" and self.span == "\\(") or (char == "]" and self.span == "\\["):
                self.span = ""
            elif char.isalpha() and self.span == "amount":
                self.span = "$"
        elif char == "\\":
            self._escaped = True
        elif char == "$":
            self._read_dollar()
        elif char in "^{" and self.span == "amount":
            self.span = "$"

    def _read_dollar(self) -> None:
        if self.span in ("\\(", "\\["):
            return
        if self._dollar:
            self._dollar = False
            self.span = "" if self.span == "$$" else "$$"
        elif self.span in ("$", "amount"):
            self.span = ""
            self._dollar = self.tail[-1:].isspace()
        else:
            self._dollar = True

    def _remember(self, char: str) -> None:
        self.tail = (self.tail + char)[-LINE_LIMIT:]
        if char.isalnum() or char in "._":
            self.word = (self.word + char)[-WORD_LIMIT:]
            self.url = char.isascii() and (self.url or self.word.lower() == "www.")
        else:
            dotted = char == "/" and "." in self.word.strip(".")
            ends = char.isspace() or not char.isascii() or char in "<>\"'()[]{}"
            self.url = not ends and (self.url or dotted or self.tail.endswith("://"))
            self.word = ""
        if char == "|" and self.line[:1] == "|":
            self.line = "|"
        elif len(self.line) < LINE_LIMIT and (self.line or not char.isspace()):
            self.line += char


def without_closing_tags(start: str) -> str:
    """How a sentence begins behind the tags that close something ("</em></strong>")."""
    return start[found.end() :] if (found := _CLOSING_TAGS.match(start)) else start


def may_close(start: str) -> bool:
    """Whether a line that begins so may turn out to close something, by a name ("\\end{...}",
    "</tag>")."""
    return start[:1] in ("\\", "<") and bool(_CLOSING.fullmatch(start.rstrip(), partial=True))
