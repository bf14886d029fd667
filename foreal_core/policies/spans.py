"""What a policy may ask for: spans of text, never single tokens.

A policy is a generator: it yields a `Write`, the engine carries it out and sends back why the span
ended. So the same policy can drive the engine here or two servers that write spans.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum

from foreal_core.config import FoReaLConfig
from foreal_core.events import LEADER, Author


class Outcome(Enum):
    """Why a span ended."""

    SENTENCE_END = "sentence_end"
    HANDOFF = "hand_off"


@dataclass(frozen=True, slots=True)
class Handoff:
    """Ends the leader's span once it wrote `lead_count` tokens in it and the run of aligned
    positions reached `hits`; positions count from index `counted_from` of the span on.
    """

    lead_count: int
    hits: int
    counted_from: int


@dataclass(frozen=True, slots=True)
class Write:
    """Let `author` write to the end of the sentence, or until `handoff` ends the span.

    Attributes:
        author: who writes.
        handoff: when the span ends before the sentence does.
        propose: tokens that the draft proposes to the leader per pass; 0 writes token by token,
            None lets the engine choose. It changes how fast the text comes, never the text.
        opening: for the draft: text that is given to it instead of written, at the span's start
            and only while the thinking is not over. It must not end a sentence. The draft is
            charged for its tokens as if it had written them, for it has to read them.
    """

    author: Author
    handoff: Handoff | None = None
    propose: int | None = 0
    opening: str = ""

    @property
    def leads(self) -> bool:
        """Whether a sentence that starts with this span is led, by an opening in the leader's
        place too."""
        return self.author == LEADER or bool(self.opening)


Gate = Callable[[], bool]
Policy = Generator[Write, Outcome, None]
PolicyFactory = Callable[[FoReaLConfig, Gate], Policy]
