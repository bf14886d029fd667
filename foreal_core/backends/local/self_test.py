"""What a model does with a few tokens, tried when it is loaded.

Whether a model can be fed in pieces, put back and fed again, and whether rows can share its passes,
hangs on its code, and what its configuration says of it is not to be relied on. So it is tried: a
text in one pass against the same in pieces, and rows together against each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foreal_core.backends.local.chunks import Chunk

_TEXT = 9  # tokens
_FIRST = 4  # of them, in the first piece


class SelfTest:
    """Runs a model's passes over a short text.

    Args:
        forward: a pass: what each row ingests -> [sum of keep, V].
        plain: the model as it is, without cache or positions: tokens -> [tokens, V].
        free: ends a row.
        vocabulary: ids that the model knows.
        coarse: its numbers have fewer than 32 bits.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Chunk]], Tensor],
        plain: Callable[[Sequence[int]], Tensor],
        free: Callable[[int], None],
        vocabulary: int,
        *,
        coarse: bool,
    ) -> None:
        self._forward = forward
        self._plain = plain
        self._free = free
        self._text = [(37 * index + 11) % vocabulary for index in range(_TEXT)]
        self._other = [(53 * index + 5) % vocabulary for index in range(_TEXT)]
        # More than rounding explains: a wrong state is off by a good part of its numbers. Eight
        # bits of weights and activations round to hundredths, and by what else is in the pass.
        self._tolerance = 0.2 if coarse else torch.finfo(torch.float32).eps ** 0.5

    def fault(self) -> str | None:
        """Why the model cannot share a text; None if it can."""
        text, other = self._text, self._other
        whole = self._one(0, text)
        self._free(0)
        if not bool(whole.isfinite().all()):
            return None  # whoever meets such numbers in a request says so
        if self._differ(whole, self._plain(text)):
            return "it counts positions in a way of its own"
        first = self._one(0, text[:_FIRST])
        if self._differ(first, whole[:_FIRST]):
            return "it looks at tokens that come later, as an encoder does"
        rest = self._one(_FIRST, text[_FIRST:])
        if self._differ(rest, whole[_FIRST:]):
            return "several tokens that it reads at once, after others, are not read as one by one"
        self._one(_FIRST, other[:3])
        again = self._one(_FIRST, text[_FIRST:])
        if self._differ(again, whole[_FIRST:]):
            return "it cannot be put back to where it was"
        for position in range(_FIRST, _TEXT):
            token = self._one(position, text[position : position + 1])
            if self._differ(token, whole[position : position + 1]):
                return "tokens that it reads one by one are not read as at once"
        self._free(0)
        return None

    def rows_can_share(self, *, padded: bool) -> bool:
        """Whether two rows in one pass are as each alone.

        Args:
            padded: with unequal numbers of tokens, too.
        """
        texts = self._text, self._other
        firsts = (5, 3) if padded else (4, 4)
        alone = []
        for text, first in zip(texts, firsts, strict=True):
            alone.append([self._one(0, text[:first]), self._one(first, text[first : first + 1])])
            self._free(0)
        begun = self._forward(
            [Chunk(row, 0, texts[row][: firsts[row]], firsts[row]) for row in (0, 1)]
        )
        right = not self._differ(begun, torch.cat([alone[0][0], alone[1][0]]))
        if not padded:  # one token each, at different positions
            self._free(1)
            self._forward([Chunk(1, 0, texts[1][:3], 3)])
            alone[1][1] = self._beside(texts[1])
            self._forward([Chunk(1, 0, texts[1][:3], 3)])
            firsts = (4, 3)
        going = [
            Chunk(row, firsts[row], texts[row][firsts[row] : firsts[row] + 1], 1, firsts[row])
            for row in (0, 1)
        ]
        right = right and not self._differ(
            self._forward(going), torch.cat([alone[0][1], alone[1][1]])
        )
        self._free(0)
        self._free(1)
        return right

    def _beside(self, text: Sequence[int]) -> Tensor:
        found = self._forward([Chunk(1, 3, text[3:4], 1, 3)])
        self._free(1)
        return found

    def _one(self, start: int, tokens: Sequence[int]) -> Tensor:
        return self._forward([Chunk(0, start, tokens, len(tokens), start)])

    def _differ(self, found: Tensor, expected: Tensor) -> bool:
        found, expected = found.double(), expected.double()
        # `not <=`: numbers that are none differ.
        return not bool((found - expected).norm() <= self._tolerance * expected.norm())
