"""A backend without models: what follows each token is written down. No torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from foreal_core.backends.base import Capabilities, Score, SpanToken, Until
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile, Usage
from foreal_core.events import Author


class ScriptedBackend:
    """Writes after each id the id that a model's script names.

    Args:
        scripts: of "leader" and "draft": id -> next id.
        otherwise: what follows an id that a script does not name.
        scores: whether it can score.
    """

    max_context = 512

    def __init__(
        self, scripts: Mapping[Author, Mapping[int, int]], otherwise: int, *, scores: bool = False
    ) -> None:
        self.capabilities = Capabilities(scores=scores)
        self.profiles = {author: ModelProfile(author, 10, 2, 1, 24) for author in scripts}
        self.asked: list[tuple[str, Author, int]] = []  # what, of whom, from which position on
        self.closed = False
        self._scripts = scripts
        self._otherwise = otherwise

    def follows(self, author: Author, token: int) -> int:
        return self._scripts[author].get(token, self._otherwise)

    def check(self, config: FoReaLConfig) -> None:
        """All that a span can have is kept."""

    async def write(
        self,
        author: Author,
        ids: Sequence[int],
        until: Until,
        config: FoReaLConfig,
        seed: int,
        prompt_length: int,
        usage: Usage,
    ) -> AsyncIterator[Sequence[SpanToken]]:
        self.asked.append(("write", author, len(ids)))
        token = ids[-1]
        for _ in range(until.tokens):
            token = self.follows(author, token)
            yield [SpanToken(token, token)]
            if token in until.stop_ids:
                return

    async def score(
        self, author: Author, ids: Sequence[int], start: int, usage: Usage
    ) -> list[Score]:
        self.asked.append(("score", author, start))
        choices = [self.follows(author, token) for token in ids[start - 1 : -1]]
        return [Score(choice, 0.0, 0.0) for choice in choices]

    async def aclose(self) -> None:
        self.closed = True
