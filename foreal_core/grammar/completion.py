"""How a JSON text can end from where it is: what keeps an answer inside its length limit.

A grammar only says what may come next. A weak model may then write one string for ever and be cut
off in it, though a few more tokens would have closed everything. An `Ending` is a known sequence of
tokens that ends the text; whoever holds one at every step can stop the model in time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

# What ends strings, arrays, objects and numbers, what makes short values, then everything else.
_QUOTE, _BACKSLASH = b'"\\'
_OUTSIDE_STRINGS = bytes(dict.fromkeys(b'}],"0123456789ntf-.[{' + bytes(range(256))))
_INSIDE_STRINGS = bytes(dict.fromkeys(b'"' + bytes(range(0x20, 0x7F)) + bytes(range(256))))
# A special token in llguidance's bytes, which are no UTF-8 there.
_SPECIAL = re.compile(rb"\xff\[(\d+)\]")
# Steps after which a search gives up: the grammar may lead it ever deeper. Then it is tried again
# every so many tokens only, until few are left.
_MOST_STEPS = 512
_RETRY_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Ending:
    """A way to end the text from one place in it.

    Attributes:
        tokens: what is to be written, end of sequence apart; None where no way was found.
        quoted: the place is inside a string.
        escaped: the place is right after a backslash in a string.
    """

    tokens: tuple[int, ...] | None = None
    quoted: bool = False
    escaped: bool = False

    def fits(self, room: int) -> bool:
        """Whether a way is known and takes at most `room` tokens."""
        return self.tokens is not None and len(self.tokens) <= room


class EndingFinder:
    """Finds ways to end JSON texts of one tokenizer (llguidance's `LLTokenizer`).

    A way is found by writing what ends the innermost string, number, array or object wherever the
    grammar (llguidance's `LLMatcher`) lets it, and else what was written least often so far, so
    that no choice is made for ever. It need not be the shortest.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        spelled = {bytes([byte]): tokenizer.tokenize_bytes(bytes([byte])) for byte in range(256)}
        self._token_of = {
            byte[0]: tokens[0]
            for byte, tokens in spelled.items()
            if len(tokens) == 1 and tokenizer.decode_bytes(tokens) == byte
        }

    def start(self, matcher: Any) -> Ending:
        """A way from the start of a text; the matcher has consumed nothing."""
        return self._searched(matcher, Ending(), _MOST_STEPS)

    def after(self, before: Ending, token: int, matcher: Any, room: int) -> Ending:
        """A way from one token further on, which the matcher has consumed.

        The way that was known is kept where it still works and fits into `room` tokens, since a
        search from there could miss it.
        """
        here = self._moved(before, self._tokenizer.decode_bytes([token]))
        known = before.tokens or ()
        if known[:1] == (token,):
            return replace(here, tokens=known[1:])
        kept = replace(here, tokens=known) if known and self._ends(matcher, known) else here
        hopeless = before.tokens is None and room > _RETRY_TOKENS and room % _RETRY_TOKENS
        if hopeless or kept.fits(room):
            return kept
        # Each step is a token at least: what takes more of them than there is room helps nobody.
        found = self._searched(matcher, here, min(room + 1, _MOST_STEPS))
        return found if found.tokens is not None else kept

    def _ends(self, matcher: Any, tokens: Iterable[int]) -> bool:
        copy, ids = matcher.deep_copy(), list(tokens)
        return copy.try_consume_tokens(ids) == len(ids) and bool(copy.is_accepting())

    def _searched(self, matcher: Any, here: Ending, steps: int) -> Ending:
        """`here` with a way, if one is found in so many steps."""
        copy, place = matcher.deep_copy(), here
        written: list[int] = []
        chosen: Counter[int] = Counter()
        for _ in range(steps):
            if copy.is_accepting():
                return replace(here, tokens=tuple(written))
            tokens = self._forced(copy) or self._choice(copy, place, chosen)
            if not tokens or copy.try_consume_tokens(tokens) < len(tokens):
                break
            written += tokens
            place = self._moved(place, self._tokenizer.decode_bytes(tokens))
        return replace(here, tokens=None)

    def _forced(self, matcher: Any) -> list[int]:
        """What can only come next, if the tokenizer can spell it."""
        forced = matcher.compute_ff_bytes()
        if special := _SPECIAL.match(forced):
            return [int(special[1])]
        forced = forced.partition(b"\xff")[0]  # up to the next special token
        tokens: list[int] = self._tokenizer.tokenize_bytes(forced) if forced else []
        return tokens if self._tokenizer.decode_bytes(tokens) == forced else []

    def _choice(self, matcher: Any, place: Ending, chosen: Counter[int]) -> list[int]:
        """The token of one byte that ends the most, or was chosen least often."""
        order = _INSIDE_STRINGS if place.quoted else _OUTSIDE_STRINGS
        allowed = [
            byte
            for byte in order
            if byte in self._token_of and matcher.validate_tokens([self._token_of[byte]])
        ]
        if not allowed:
            return []
        enders = b'"' if place.quoted else b"}],"
        byte = allowed[0] if allowed[0] in enders else min(allowed, key=chosen.__getitem__)
        chosen[byte] += 1
        return [self._token_of[byte]]

    def _moved(self, place: Ending, text: bytes) -> Ending:
        """Where the text goes on: inside a string or not."""
        quoted, escaped = place.quoted, place.escaped
        for byte in text:
            if escaped:
                escaped = False
            elif byte == _QUOTE:
                quoted = not quoted
            elif byte == _BACKSLASH:
                escaped = quoted
        return Ending(None, quoted, escaped)
