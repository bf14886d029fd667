"""Text that comes token by token is what a plain decode gives, and no character comes in halves."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from small_tokenizers import byte_level, sentencepiece, wordpiece
from transformers import PreTrainedTokenizerFast

from foreal_core.text.detokenizer import Detokenizer

TOKENIZERS = {
    "byte_level": byte_level(),
    "sentencepiece": sentencepiece(),
    "wordpiece": wordpiece(),
}


def plain(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class TestDetokenizer:
    @pytest.mark.parametrize("name", TOKENIZERS)
    @given(data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_deltas_and_flush_are_the_decoded_text(self, name: str, data: st.DataObject) -> None:
        tokenizer = TOKENIZERS[name]
        ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 2), max_size=24))
        detokenizer = Detokenizer(tokenizer)
        deltas = [detokenizer.push(i) for i in ids]
        assert "".join(deltas) + detokenizer.flush() == plain(tokenizer, ids)

    @pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
    @given(text=st.text(max_size=12))
    @settings(max_examples=100, deadline=None)
    def test_real_text_never_shows_half_a_character(self, name: str, text: str) -> None:
        tokenizer = TOKENIZERS[name]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        detokenizer = Detokenizer(tokenizer)
        shown = ""
        for i in ids:
            shown += detokenizer.push(i)
            assert plain(tokenizer, ids).startswith(shown)
        assert shown + detokenizer.flush() == plain(tokenizer, ids)

    def test_a_character_of_four_bytes_comes_with_its_last_token(self) -> None:
        tokenizer = TOKENIZERS["byte_level"]
        ids = tokenizer("a😀b")["input_ids"]
        detokenizer = Detokenizer(tokenizer)
        assert [detokenizer.push(i) for i in ids] == ["a", "", "", "😀", "b"]

    def test_a_byte_run_is_held_until_it_ends(self) -> None:
        tokenizer = TOKENIZERS["sentencepiece"]
        run = [3 + byte for byte in "é語".encode()]
        dot = tokenizer.convert_tokens_to_ids(".")
        detokenizer = Detokenizer(tokenizer)
        assert [detokenizer.push(i) for i in [*run, dot]] == [""] * len(run) + ["é語."]

    def test_a_special_token_inside_a_character_changes_nothing(self) -> None:
        tokenizer = TOKENIZERS["byte_level"]
        first, second = tokenizer("ö")["input_ids"]
        eos = tokenizer.convert_tokens_to_ids("<|eos|>")
        detokenizer = Detokenizer(tokenizer)
        assert [detokenizer.push(i) for i in (first, eos, second)] == ["", "", "ö"]

    @pytest.mark.parametrize("name", TOKENIZERS)
    def test_a_copy_goes_its_own_way(self, name: str) -> None:
        tokenizer = TOKENIZERS[name]
        rng = random.Random(7)
        for _ in range(30):
            start, one, two = ([rng.randrange(len(tokenizer)) for _ in range(4)] for _ in range(3))
            detokenizer = Detokenizer(tokenizer)
            shown = "".join(detokenizer.push(i) for i in start)
            twin = detokenizer.copy()
            for stream, rest in ((detokenizer, one), (twin, two)):
                text = shown + "".join(stream.push(i) for i in rest) + stream.flush()
                assert text == plain(tokenizer, start + rest)

    def test_the_work_per_token_does_not_grow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = sentencepiece()
        widths: list[int] = []
        decode = tokenizer.decode

        def watched(ids: list[int], **kwargs: Any) -> str:
            widths.append(len(ids))
            return decode(ids, **kwargs)

        monkeypatch.setattr(tokenizer, "decode", watched)
        detokenizer = Detokenizer(tokenizer)
        hello = tokenizer.convert_tokens_to_ids("▁hello")
        for _ in range(200):
            detokenizer.push(hello)
        assert max(widths) == 2
        assert len(widths) == 201  # one small decode each, and one for the cached length

    def test_a_tokenizer_is_not_kept_alive(self) -> None:
        import gc
        import weakref

        for build in (byte_level, sentencepiece):
            tokenizer = build()
            Detokenizer(tokenizer).push(5)
            gone = weakref.ref(tokenizer)
            del tokenizer
            gc.collect()
            assert gone() is None
