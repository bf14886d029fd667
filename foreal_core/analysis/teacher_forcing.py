"""What both models would write at every position of given texts, many texts in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from foreal_core.backends.local.chunks import Chunk
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.decoder import FoReaLDecoder
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.text.pair_tokenizer import PairTokenizer

# Logits of a pass are held in memory at once: rows x tokens x vocabulary numbers at most.
_MOST_LOGITS = 2**28
_LONGEST_PIECE = 256

Text = tuple[Sequence[int], Sequence[int]]  # prompt, completion


class TeacherForcer:
    """Runs a decoder's two models over given texts, with caches of its own; made by
    `teacher_forcing`."""

    def __init__(
        self, runners: dict[Author, ModelRunner], tokenizer: PairTokenizer, rows: int
    ) -> None:
        self._runners = runners
        self._tokenizer = tokenizer
        self._rows = rows

    def predictions(self, texts: Sequence[Text]) -> Iterator[dict[Author, list[int]]]:
        """For each text the most likely token of "leader" and "draft" at every position of its
        completion, in the leader's ids, given all tokens before it."""
        for start in range(0, len(texts), self._rows):
            batch = texts[start : start + self._rows]
            both = {author: self._run(author, batch) for author in self._runners}
            for row in range(len(batch)):
                yield {author: both[author][row] for author in both}

    @torch.inference_mode()
    def _run(self, author: Author, batch: Sequence[Text]) -> list[list[int]]:
        runner = self._runners[author]
        piece = max(1, min(_LONGEST_PIECE, _MOST_LOGITS // (runner.vocab_size * len(batch))))
        found: list[list[int]] = [[] for _ in batch]
        # The last token of a completion predicts nothing that was written.
        fed = [[*prompt, *completion][:-1] for prompt, completion in batch]
        for start in range(0, max(map(len, fed)), piece):
            chunks = []
            for row, tokens in enumerate(fed):
                ids = tokens[start : start + piece]
                if ids:
                    before = len(batch[row][0]) - 1 - start  # tokens whose logits nobody wants
                    keep = len(ids) - min(max(before, 0), len(ids))
                    read = ids if author == LEADER else self._tokenizer.to_draft(ids)
                    chunks.append(Chunk(row, start, read, keep))
            self._pass(author, chunks, found)
        return found

    def _pass(self, author: Author, chunks: Sequence[Chunk], found: list[list[int]]) -> None:
        logits = self._runners[author].forward(chunks)
        tokenizer = self._tokenizer
        ids = tokenizer.leader_forbidden if author == LEADER else tokenizer.draft_forbidden
        if ids:
            forbidden = torch.tensor(ids, device=logits.device)
            logits = logits.index_fill(-1, forbidden, -torch.inf)
        tokens = logits.argmax(dim=-1).tolist()
        for chunk in chunks:
            own, tokens = tokens[: chunk.keep], tokens[chunk.keep :]
            if author == DRAFT:
                own = [self._tokenizer.from_draft(token) for token in own]
            found[chunk.row] += own


@contextlib.contextmanager
def teacher_forcing(decoder: FoReaLDecoder) -> Iterator[TeacherForcer]:
    """Lends a decoder's models for the block; the decoder must be idle meanwhile."""
    rows = decoder.stats()["max_batch_size"]
    runners: dict[Author, ModelRunner] = {}
    try:
        for author, model in decoder.transformers_models.items():
            # Every text is read once: fixed shapes would not pay.
            runners[author] = ModelRunner(
                model,
                decoder.models[author],
                max_rows=rows,
                max_slots=decoder.max_context,
                static=False,
            )
        yield TeacherForcer(runners, decoder.pair_tokenizer, rows)
    finally:
        for runner in runners.values():
            runner.restore()
