"""Requests in llama.cpp that begin like others start from what those have read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf_files import needs_llama_cpp, write_gguf
from test_gguf import load
from test_prefix_cache import AUTHORS, asked, read, tokens
from toy import fresh_pair

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.backends.llama_cpp import context, rows
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.llama_cpp.options import LlamaOptions
from foreal_core.backends.llama_cpp.rows import LlamaRows
from foreal_core.request.chunk import Chunk

pytestmark = needs_llama_cpp

SHORT = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=6, temperature=0.0)
EXACT = {"deterministic": True, "flash_attn": None, "type_k": "f16", "type_v": "f16"}
SHARED: dict[str, Any] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, two = tmp_path_factory.mktemp("qwen2"), fresh_pair("qwen2")
    two.tokenizer.save_pretrained(made)
    for author in AUTHORS:
        write_gguf(made / f"{author}.gguf", two.model(author), two.tokenizer)
    return made


@pytest.fixture
def decoder(folder: Path) -> Iterator[FoReaLDecoder]:
    with load(folder) as made:
        yield made
        made.check_integrity()


@pytest.mark.parametrize("least", [16, 2048])
@pytest.mark.parametrize("own", [SHARED, EXACT], ids=["one pool", "deterministic"])
def test_texts_are_those_of_a_decoder_that_remembers_nothing(
    own: dict[str, Any], least: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "_LEAST_CELLS", least)  # 16: the pool grows, and texts go for it
    monkeypatch.setattr(rows, "_KEPT", 3)
    rng, taken_over = Random(least), 0
    with load(folder, own=own) as made, load(folder, own=own, prefix_cache=False) as forgetful:
        for _ in range(4):
            requests = [asked(rng.randrange(200)) for _ in range(rng.randint(2, 6))]
            streams = [made.stream(list(one.prompt), one.config) for one in requests]
            for one, stream in zip(requests, streams, strict=True):
                if one.cancel_after is not None:
                    for _, _ in zip(range(one.cancel_after), stream, strict=False):
                        pass
                    stream.close()
                    continue
                alone = forgetful.generate(list(one.prompt), one.config)
                for _ in stream:
                    pass
                assert stream.result.token_ids == alone.token_ids, one
                assert stream.result.authors == alone.authors
                for author in AUTHORS:
                    cached = stream.result.cost.cached_tokens[author]
                    before, after = (read([g.cost], author) for g in (alone, stream.result))
                    assert after + min(cached, len(one.prompt)) == before
                    taken_over += cached
            made.check_integrity()
    assert taken_over > 0


def test_the_next_turn_of_a_chat_reads_what_is_new(decoder: FoReaLDecoder) -> None:
    rng = Random(3)
    prompt = tokens(rng, 100)
    first = decoder.generate(prompt, SHORT)
    longer = [*prompt, *first.token_ids, *tokens(rng, 9)]
    second = decoder.generate(longer, SHORT)
    for author in AUTHORS:
        assert first.cost.cached_tokens[author] == 0
        # The last written token was never read, and the last of a prompt always is.
        assert second.cost.cached_tokens[author] >= len(prompt)
    assert decoder.generate(tokens(rng, 100), SHORT).cost.cached_tokens == dict.fromkeys(AUTHORS, 0)


def test_requests_that_come_together_read_their_beginning_once(decoder: FoReaLDecoder) -> None:
    rng = Random(4)
    beginning = tokens(rng, 200)
    written = decoder.generate([[*beginning, *tokens(rng, 3)] for _ in range(4)], SHORT)
    for author in AUTHORS:
        assert read([one.cost for one in written], author) <= 200 + 4 * 4


def test_rows_that_begin_alike_share_their_cells(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "_LEAST_CELLS", 1024)
    model = LlamaModel("leader", folder / "leader.gguf", LlamaOptions(n_gpu_layers=0))
    held = LlamaRows(model, most_rows=6, most_cells=512, threads=1, keeps=True)
    rng = Random(5)
    text = tokens(rng, 500)
    held.feed([Chunk(0, 0, text, 1)])
    held.keep(0, text)
    for row in range(1, 6):
        held.take(row, None, text, 499)
        held.feed([Chunk(row, 499, [text[-1], *tokens(rng, 9)], 1)])
    assert held.context.bytes_held == 1024 * model.cache_bytes
    for row in range(1, 6):
        held.free(row)
    assert held.left_over() == ""
    held.clear()
    assert not held.context.lengths
    held.close()


def test_what_nobody_vouches_for_is_not_kept(folder: Path) -> None:
    model = LlamaModel("leader", folder / "leader.gguf", LlamaOptions(n_gpu_layers=0))
    held = LlamaRows(model, most_rows=2, most_cells=512, threads=1, keeps=True)
    doubtful = {0}
    prefixes = rows.LlamaPrefixes(held, pass_tokens=1.0, doubtful=doubtful)
    text = tokens(Random(6), 40)
    held.feed([Chunk(0, 0, text, 0)])
    prefixes.keep(0, text)
    assert prefixes.kept(text) == 0
    doubtful.clear()
    prefixes.keep(0, text)
    assert prefixes.kept(text) == len(text)
    held.close()
