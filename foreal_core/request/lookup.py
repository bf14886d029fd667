"""Guesses at how a text goes on, out of the text itself.

Prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding): reasoning repeats
the words of its question and of itself, so what followed the last few tokens when they stood there
before is a fair guess.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

# Tokens that must have stood there before: three if they have, else two, else one.
_MOST_ALIKE = 3
# The end of a long text is enough to look at: it takes about 0.1 ms.
LOOKED_AT = 8192


def continued(text: Sequence[int], most: int) -> list[int]:
    """`most` ids that may follow a text; none where its last token is new to it."""
    ids = array("I", text)
    size, encoded = ids.itemsize, ids.tobytes()
    for alike in range(min(_MOST_ALIKE, len(ids) - 1), 0, -1):
        # Any place but the text's own end; the latest says most about what comes.
        place = _rfind(encoded[:-size], encoded[-alike * size :], size)
        if place is not None:
            after = place + alike
            for index in range(after, after + most):
                ids.append(ids[index])  # runs into the guesses where the text goes in circles
            return ids[-most:].tolist() if most else []
    return []


def _rfind(encoded: bytes, wanted: bytes, size: int) -> int | None:
    """The index of the last item at which the items `wanted` begin."""
    place = encoded.rfind(wanted)
    while place % size and place >= 0:
        place = encoded.rfind(wanted, 0, place + len(wanted) - 1)
    return None if place < 0 else place // size
