"""What one model has computed for one request, and what it is to ingest next."""

from __future__ import annotations

from collections.abc import Sequence

from foreal_core.cost import Meter, TokenKind
from foreal_core.events import LEADER, Author
from foreal_core.request.chunk import Chunk
from foreal_core.request.transcript import Transcript

# Tokens of one row per pass; longer prompts go in piece by piece.
PREFILL_CHUNK = 512
# Tokens that a recurrent model reads again and again behind its checkpoint, at most: then it reads
# them once more with nothing behind them that may fall, and has a new one.
_FURTHEST = 32


class ModelState:
    """One model's part of a text.

    A model with recurrent layers can be put back to few positions: the text's start, a checkpoint,
    and where its last pass began and ended. A checkpoint is the last position at which a pass began
    with nothing before it that could be taken back.

    Args:
        recurrent: whether the model has such layers; others can be put back anywhere.

    Attributes:
        kinds: why each position in the model's cache was fed, behind those that were taken over.
        meter: what all passes cost.
        lost: positions that were in the cache when the row was lost.
        again: what passes over those cost: no part of what the text would cost alone.
        checkpoint: see above.
    """

    def __init__(self, *, recurrent: bool = False) -> None:
        self.kinds: list[TokenKind] = []
        self.meter = Meter()
        self.lost = 0
        self.again = Meter()
        self.checkpoint = 0
        self._recurrent = recurrent
        self._begun = 0  # where the last pass began

    @property
    def length(self) -> int:
        """Positions in the model's cache."""
        return self.meter.cached + len(self.kinds)

    def taken_over(self, length: int) -> None:
        """The cache, which was empty, holds the first `length` positions of another's."""
        self.meter.cached = length

    def ingested(self, kinds: Sequence[TokenKind], logits: int, rows: int | None) -> None:
        """The next `len(kinds)` positions went in, in a pass that `rows` rows shared, or, where
        that is None, in the last one as well, and gave so many rows of logits."""
        self._begun = start = self.length
        self.meter.record_pass(start, kinds, logits, rows)
        if start < self.lost:
            self.again.record_repeated(start, len(kinds), logits, self.lost)
        self.kinds += kinds

    def wasted(self, start: int, tokens: int, logits: int, rows: int) -> None:
        """A pass over `tokens` positions from `start` on whose results are dropped; it is
        charged."""
        kinds: list[TokenKind] = ["decode"] * tokens
        self.meter.record_pass(start, kinds, logits, rows)
        self.meter.record_discarded(kinds)

    def roll_back(self, length: int) -> None:
        """Keeps only what was computed from the first `length` tokens, or of fewer where the model
        cannot be put back to there."""
        self.lost = min(self.lost, length)
        self.again.cached = min(self.again.cached, length)
        if self.meter.cached + len(self.kinds) <= length:
            return
        if self._recurrent:
            places = (self._begun, self.checkpoint, 0)
            length = max(place for place in places if place <= length)
            self._begun = min(self._begun, length)
            self.checkpoint = min(self.checkpoint, length)
        fed = max(length - self.meter.cached, 0)
        if len(self.kinds) > fed:
            self.meter.record_discarded(self.kinds[fed:])
            del self.kinds[fed:]
        # What is computed after all was no gain.
        self.meter.cached = min(self.meter.cached, length)

    def restart(self) -> None:
        """The row is lost, and all of it is to be read again."""
        lost, cached = (self.lost, self.again.cached) if self.lost else (0, self.meter.cached)
        lost = max(lost, self.length)
        self.roll_back(0)
        self.lost, self.again.cached = lost, cached

    def settle(self, length: int) -> None:
        """The first `length` tokens of the text will not be taken back."""
        if self._recurrent and (here := self.length) <= length:
            self.checkpoint = here

    @property
    def known(self) -> int:
        """Positions that were in the cache, those included that were lost."""
        return max(self.length, self.lost)

    @property
    def spared(self) -> int:
        """Positions that others had read, when the model first came to the text."""
        return self.again.cached if self.lost else self.meter.cached

    def lags(self, length: int) -> bool:
        """Whether so much of a text of `length` tokens lies behind the checkpoint that it should be
        read with nothing behind it."""
        return self._recurrent and length - self.length > _FURTHEST


def kinds_of(
    text: Transcript, author: Author, positions: range, *, given: bool = False
) -> list[TokenKind]:
    """Why `author` reads the tokens at each of these positions; `given` ones behind the text are no
    draws."""
    first, end = positions.start - text.prompt_length, positions.stop - text.prompt_length
    written = text.authors[max(first, 0) : max(end, 0)]
    kinds: list[TokenKind] = ["prefill"] * (min(end, 0) - min(first, 0))
    kinds += ["decode" if by == author else "catch_up" for by in written]
    ahead: TokenKind = "verify" if author == LEADER else "decode"
    kinds += ["catch_up" if given else ahead] * (len(positions) - len(kinds))
    return kinds


def next_chunk(
    row: int,
    cached: int,
    text: Sequence[int],
    proposals: Sequence[int],
    first_logit: int,
    most: int = PREFILL_CHUNK,
) -> Chunk:
    """What a model ingests next: all it has not seen, a long text in pieces of `most` tokens, with
    logits only in the last piece.

    Args:
        row: the cache row.
        cached: positions in the model's cache, fewer than `first_logit`.
        text: the ids so far.
        proposals: ids behind them that are to be checked or read as well.
        first_logit: the first position whose logits are wanted; those of every later position up
            to the end come with it, from one pass.
    """
    length = len(text)
    end = length + len(proposals)
    # Pieces end before the first wanted logits: those come from one pass, whatever its length.
    stop = min(cached + most, first_logit - 1)
    if end - cached <= most or stop <= cached:
        stop = end
    tokens = list(text[cached:stop])
    if stop > length:
        tokens += proposals[max(cached - length, 0) : stop - length]
    return Chunk(row, cached, tokens, end - first_logit + 1 if stop == end else 0)
