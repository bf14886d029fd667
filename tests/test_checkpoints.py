"""Models with recurrent layers go back to checkpoints: the states are those of the text, the text
is the same, and few passes are spent on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hybrid_models import with_recurrent_layers
from hypothesis import given, settings, strategies as st
from toy import PROMPTS, FoReaLDecoder, fresh_pair
from transformers.cache_utils import LinearAttentionLayer

from foreal_core import FoReaLConfig, Generation
from foreal_core.backends.local import executor
from foreal_core.backends.local.row_states import StatefulCache
from foreal_core.request.chunk import Chunk
from foreal_core.request.model_state import ModelState, next_chunk
from foreal_core.request.proposals import Worth

CPU = torch.device("cpu")
ROWS, SLOTS = 3, 400


def folded(tokens: list[int]) -> int:
    """A state that hangs on every token and on their order."""
    state = 0
    for token in tokens:
        state = (state * 31 + token) % 1009
    return state


@dataclass
class Row:
    text: list[int] = field(default_factory=lambda: [1])
    state: ModelState = field(default_factory=lambda: ModelState(recurrent=True))


def run(cache: StatefulCache, chunks: list[Chunk], rows: dict[int, Row]) -> None:
    """A pass of a model whose only layer folds what it reads."""
    loaded = cache.load(chunks)
    layer = loaded.layers[0]
    if chunks[0].start:
        assert layer.conv_states[0].flatten().tolist() == [
            folded(rows[chunk.row].text[: chunk.start]) for chunk in chunks
        ]
    ends = [folded([*rows[c.row].text[: c.start], *c.tokens]) for c in chunks]
    layer.update_conv_state(torch.tensor(ends, dtype=torch.float64).view(-1, 1, 1))
    cache.store(chunks, loaded)


STEPS = st.lists(
    st.tuples(
        st.integers(1, 3),  # rows that take part
        st.integers(0, 5),  # proposals
        st.integers(0, 5),  # of them, accepted
        st.integers(0, 2),  # tokens at the text's end that are in doubt
        st.booleans(),  # whether these are taken back
    ),
    max_size=20,
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS)
def test_a_row_goes_back_to_the_states_of_its_text(
    steps: list[tuple[int, int, int, int, bool]],
) -> None:
    cache = StatefulCache([LinearAttentionLayer()], ROWS, SLOTS)
    rows = {row: Row() for row in range(ROWS)}
    token = 1
    for many, proposed, accepted, doubtful, taken_back in steps:
        groups: dict[tuple[int, bool], list[Chunk]] = {}
        proposals = [token + index for index in range(proposed)]
        for number in range(many):
            row = rows[number]
            row.state.roll_back(len(row.text) - 1)
            row.state.settle(max(len(row.text) - doubtful, 0))
            chunk = next_chunk(number, row.state.length, row.text, proposals, len(row.text))
            chunk = Chunk(number, chunk.start, chunk.tokens, chunk.keep, row.state.checkpoint)
            groups.setdefault(cache.share(chunk), []).append(chunk)
        for chunks in groups.values():
            run(cache, chunks, rows)
            for chunk in chunks:
                rows[chunk.row].state.ingested(["decode"] * len(chunk.tokens), chunk.keep, 1)
        for number in range(many):
            row = rows[number]
            if taken_back and doubtful < len(row.text):
                del row.text[len(row.text) - doubtful :]
                row.state.roll_back(len(row.text))
            else:
                row.text += [*proposals[:accepted], token + 500]
                row.state.roll_back(len(row.text) - 1)
        token += 7
        assert cache.bytes_held(CPU) <= cache.need(ROWS, SLOTS)[CPU]
    for number in rows:
        cache.free(number)
    assert cache.held == (0, 0)


def written(recurrent: bool) -> list[Generation]:
    """What a pair writes whose models have recurrent layers, or lack them; the draft is a quarter
    of the leader, by what its proposals must promise."""
    two = fresh_pair("qwen2")
    models = [two.leader, two.draft]
    if recurrent:
        models = [with_recurrent_layers(model) for model in models]
    ask = FoReaLConfig(lead_count=15, hit_threshold=3, lead_probability=0.6, max_new_tokens=60)
    with FoReaLDecoder(*models, two.tokenizer, max_batch_size=4) as decoder:
        return [decoder.generate(prompt, ask, seed=1) for prompt in PROMPTS[:4]]


def test_a_hybrid_pair_writes_the_same_in_hardly_more_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a like pair without recurrent layers: at most 1.25 times as many passes of either model.
    What lies behind a checkpoint is read again, with what comes next."""
    monkeypatch.setattr(executor.LocalExecutor, "worth", Worth(0.4))
    plain, hybrid = (written(recurrent) for recurrent in (False, True))
    assert [one.token_ids for one in plain] == [one.token_ids for one in hybrid]
    for author in ("leader", "draft"):
        passes = [sum(one.cost.forward_passes[author] for one in two) for two in (plain, hybrid)]
        assert passes[1] <= 1.25 * passes[0]
    read = [
        sum(sum(one.cost.forward_tokens["leader"].values()) for one in two)
        for two in (plain, hybrid)
    ]
    assert read[0] < read[1] < 3 * read[0]
