"""Detokenizer and StopFilter against plain decode and find; what two vocabularies share."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from foreal_core.errors import ConfigError, IncompatibleModelsError
from foreal_core.text.detokenizer import Detokenizer
from foreal_core.text.pair_tokenizer import PairTokenizer
from foreal_core.text.stop_strings import StopFilter

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(specials: Iterable[str] = ("<|eos|>",), **named: Any) -> PreTrainedTokenizerFast:
    """A Qwen-like tokenizer: 256 bytes, a few merges, one added ordinary word, then specials."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ġ", "w"),
        ("ð", "Ł"),
        ("Ã", "©"),
    ]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [AddedToken("<think>", normalized=False), AddedToken("né e", normalized=False)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def sentencepiece() -> PreTrainedTokenizerFast:
    """A Llama-like tokenizer: "▁" for the space, byte fallback, the leading space stripped."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁hello", "▁▁", "h", "e", "l", "o", "é", "日", "\ufffd", ".", "▁."]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def wordpiece() -> PreTrainedTokenizerFast:
    """A tokenizer of the general path whose spacing depends on the token before."""
    tokens = ["[UNK]", "a", "b", "##c", "é", "##.", "\ufffd"]
    backend = Tokenizer(models.WordPiece(vocab={t: i for i, t in enumerate(tokens)}))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


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


def filtered(stops: list[str], deltas: list[str]) -> tuple[str, str | None]:
    stop_filter = StopFilter(stops)
    text = "".join(stop_filter.push(delta) for delta in deltas)
    return text + stop_filter.flush(), stop_filter.hit


class TestStopFilter:
    @pytest.mark.parametrize(
        ("stops", "deltas", "shown", "hit"),
        [
            ([], ["a", "b"], "ab", None),
            (["END"], ["x E", "ND y"], "x ", "END"),
            (["END"], ["x E", "N", "d"], "x ENd", None),
            (["END"], ["x E", "N"], "x EN", None),
            (["b", "abc"], ["abc"], "", "abc"),  # the earliest start
            (["b", "abc"], ["ab", "c"], "a", "b"),  # complete at once, whatever could still come
            (["ab", "abc"], ["abc"], "", "abc"),  # the longest at that start
            (["aab"], ["a", "a", "a", "b"], "a", "aab"),  # a failed start inside another
            (["\n\n"], ["a\n", "\nb"], "a", "\n\n"),
            (["é"], ["caf", "é", "s"], "caf", "é"),
        ],
    )
    def test_examples(
        self, stops: list[str], deltas: list[str], shown: str, hit: str | None
    ) -> None:
        assert filtered(stops, deltas) == (shown, hit)

    def test_only_what_may_begin_a_stop_is_held(self) -> None:
        stop_filter = StopFilter(["</answer>"])
        assert stop_filter.push("so a < b </an") == "so a < b "
        assert stop_filter.push("d") == "</and"

    def test_after_a_hit_nothing_is_shown(self) -> None:
        stop_filter = StopFilter(["x"])
        assert stop_filter.push("ax") == "a"
        assert stop_filter.push("b") == ""
        assert stop_filter.flush() == ""

    @pytest.mark.parametrize("stops", ["END", [""], [3]])
    def test_wrong_stops_are_refused(self, stops: Any) -> None:
        with pytest.raises(ConfigError, match="stop="):
            StopFilter(stops)

    @given(
        st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
        st.lists(st.text("abc", max_size=4), max_size=10),
    )
    @settings(max_examples=400, deadline=None)
    def test_against_a_search_after_every_delta(self, stops: list[str], deltas: list[str]) -> None:
        text, expected = "", None
        for delta in deltas:
            text += delta
            found = [(text.find(s), -len(s), s) for s in stops if s in text]
            if found:
                start, _, expected = min(found)
                text = text[:start]
                break
        assert filtered(stops, deltas) == (text, expected)


def pair(
    leader: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast | None = None, **changes: Any
) -> PairTokenizer:
    sizes = {
        "leader_vocab_size": len(leader),
        "draft_vocab_size": len(draft or leader),
        "leader_eos": [leader.eos_token_id],
        "draft_eos": [(draft or leader).eos_token_id],
    }
    return PairTokenizer(leader, draft, **{**sizes, **changes})


class TestSameTokenizer:
    def test_nothing_differs(self) -> None:
        tokenizer = byte_level(eos_token="<|eos|>")
        shared = pair(tokenizer)
        ids = [1, 2, 3]
        assert shared.to_draft(ids) is ids
        assert shared.from_draft(7) == 7
        assert shared.draft_forbidden == ()
        assert shared.leader_eos == {tokenizer.eos_token_id}

    @pytest.mark.parametrize("own", [False, True])
    def test_padded_widths(self, own: bool) -> None:
        tokenizer = byte_level(eos_token="<|eos|>")
        draft = byte_level(eos_token="<|eos|>") if own else None
        n = len(tokenizer)
        wider = pair(tokenizer, draft, leader_vocab_size=n + 2, draft_vocab_size=n + 5)
        assert wider.leader_forbidden == (n, n + 1)  # nobody knows what these rows mean
        assert wider.draft_forbidden == (n, n + 1, n + 2, n + 3, n + 4)
        narrower = pair(tokenizer, draft, leader_vocab_size=n + 2, draft_vocab_size=n)
        assert narrower.draft_forbidden == ()
        assert narrower.to_draft([5, n + 1]) == [5, tokenizer.eos_token_id]

    def test_either_end_of_sequence_ends_the_text(self) -> None:
        tokenizer = byte_level(["<|eos|>", "<|im_end|>"], eos_token="<|eos|>")
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        shared = pair(tokenizer, draft_eos=[end])
        assert shared.leader_eos == {tokenizer.eos_token_id, end}
        assert shared.from_draft(end) == end


class TestLikeR1AndQwen:
    """Same ordinary ids; the special ids from 265 on differ, and so do the widths."""

    leader = byte_level(
        ["<end>", "<User>", "<Assistant>", "<begin>", "<tool>", "<only>"],
        eos_token="<end>",
        bos_token="<begin>",
    )
    draft = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box|>", "<|ref|>", "<|x|>", "<tool>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )
    first = leader.convert_tokens_to_ids("<end>")

    def build(self, **changes: Any) -> PairTokenizer:
        ends = [self.first + 2, self.first]
        sizes = {"leader_vocab_size": 280, "draft_vocab_size": 276, "draft_eos": ends}
        return pair(self.leader, self.draft, **{**sizes, **changes})

    def test_the_ids_are_where_the_test_thinks(self) -> None:
        assert self.draft.convert_tokens_to_ids("<|endoftext|>") == self.first == 265

    def test_the_draft_writes_what_both_mean_and_its_own_end(self) -> None:
        assert self.build().draft_forbidden == (266, 268, 269, 270, 271, 272, 273, 274, 275)

    def test_the_draft_ends_become_the_leaders(self) -> None:
        both = self.build()
        assert [both.from_draft(i) for i in (265, 267, 50)] == [265, 265, 50]
        assert both.leader_eos == {265}

    def test_the_leaders_own_end_is_preferred_to_the_smallest(self) -> None:
        assert self.build(leader_eos=[100, 265]).from_draft(267) == 265
        assert self.build(leader_eos=[101, 100]).from_draft(267) == 100

    def test_without_an_end_of_the_leader_the_drafts_is_forbidden(self) -> None:
        both = self.build(leader_eos=[])
        assert both.leader_eos == frozenset()
        assert {265, 267} <= set(both.draft_forbidden)

    def test_what_the_draft_reads(self) -> None:
        reads = {
            264: 264,  # shared
            265: 267,  # the leader's end: the draft's end
            266: 265,  # "<User>" is the draft's "<|im_start|>", in use: padding
            267: 265,  # "<Assistant>" is the draft's end
            268: 268,  # "<begin>" is an unused special of a draft without BOS
            269: 271,  # "<tool>" has another id there
            270: 270,  # "<only>" is "<|x|>" there, unused
            273: 273,  # a row of padding to both
            279: 265,  # beyond the draft's matrix
        }
        assert self.build().to_draft(list(reads)) == list(reads.values())

    def test_plain_ids_are_passed_as_they_are(self) -> None:
        ids = [1, 2, 264]
        assert self.build().to_draft(ids) is ids

    def test_bos_becomes_the_drafts(self) -> None:
        names = ["<|im_end|>", "<bos>"]
        draft = byte_level(names, eos_token="<|im_end|>", bos_token="<bos>")
        both = pair(self.leader, draft)
        assert both.to_draft([268, 265]) == [266, 265]

    def test_a_draft_without_padding_or_end_reads_zero(self) -> None:
        draft = byte_level(["<a>", "<b>"], unk_token="<b>")
        both = pair(self.leader, draft, draft_eos=[])
        assert both.to_draft([266]) == [0]


class TestIncompatible:
    def test_the_first_differing_ids_are_named(self) -> None:
        leader, draft = byte_level(eos_token="<|eos|>"), sentencepiece()
        with pytest.raises(IncompatibleModelsError) as error:
            pair(leader, draft)
        message = str(error.value)
        assert "id 0 is '!' to the leader and '<unk>' to the draft" in message
        assert "id 1 is" not in message  # a special token of the draft
        assert "id 3 is '$' to the leader and '<0x00>' to the draft" in message
        assert message.count("to the leader") == 5
        assert "same tokenizer" in message

    def test_a_shorter_vocabulary_of_the_same_family_works(self) -> None:
        leader = byte_level(["<e>"], eos_token="<e>")
        words = {token: i for token, i in leader.get_vocab().items() if i < 260}
        draft = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE(vocab=words, merges=[]))
        )
        both = pair(leader, draft, draft_eos=[])
        assert both.draft_forbidden == ()
        assert both.to_draft([259, 262]) == [259, 0]


def chat_tokenizer(**named: Any) -> PreTrainedTokenizerFast:
    specials = ["<|im_start|>", "<|im_end|>", "<bos>"]
    return byte_level(specials, eos_token="<|im_end|>", **named)


def adding_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    bos = tokenizer.convert_tokens_to_ids("<bos>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    return tokenizer


MESSAGES = [{"role": "user", "content": "hello"}]


class TestEncoding:
    def test_text_as_transformers_does(self) -> None:
        tokenizer = sentencepiece()
        assert pair(tokenizer).encode("hello.") == tokenizer("hello.")["input_ids"]
        assert pair(tokenizer).encode("hello.")[0] == tokenizer.bos_token_id

    def test_only_text(self) -> None:
        with pytest.raises(ConfigError, match="must be a str, not int"):
            pair(sentencepiece()).encode(3)  # type: ignore[arg-type]

    def test_decode_leaves_special_tokens_out(self) -> None:
        tokenizer = byte_level(eos_token="<|eos|>")
        ids = [*tokenizer("hello <think>")["input_ids"], tokenizer.eos_token_id]
        assert pair(tokenizer).decode(ids) == "hello <think>"

    def test_a_truncating_tokenizer_file_is_not_obeyed(self) -> None:
        tokenizer = byte_level(eos_token="<|eos|>")
        tokenizer.backend_tokenizer.enable_truncation(2)
        shared = pair(tokenizer)
        assert tokenizer.backend_tokenizer.truncation is None
        assert len(shared.encode("abcdef")) == 6

    def test_chat(self) -> None:
        tokenizer = chat_tokenizer(chat_template=CHATML)
        shared = pair(tokenizer)
        assert shared.has_chat_template
        text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert shared.encode_chat(MESSAGES) == tokenizer(text)["input_ids"]

    def test_template_arguments_and_tools_reach_the_template(self) -> None:
        template = (
            "{{ tools | tojson }}{% for message in messages %}{{ message.content }}"
            "{{ message.tool_calls | tojson if message.tool_calls }}{% endfor %}"
            "{% if think %}<think>{% endif %}"
        )
        shared = pair(chat_tokenizer(chat_template=template))
        tools = [{"type": "function", "function": {"name": "f"}}]
        shown = shared.decode(shared.encode_chat(MESSAGES, tools=tools, think=True))
        assert shown == json.dumps(tools) + "hello<think>"

    @pytest.mark.parametrize("start", ["", "<bos>", "<bos><bos>"])
    @pytest.mark.parametrize("adds", [False, True])
    def test_exactly_one_bos(self, start: str, adds: bool) -> None:
        tokenizer = chat_tokenizer(chat_template=start + CHATML, bos_token="<bos>")
        if adds:
            adding_bos(tokenizer)
        ids = pair(tokenizer).encode_chat(MESSAGES)
        assert ids.count(tokenizer.bos_token_id) == (1 if start or adds else 0)
        assert ids[-1] == tokenizer.convert_tokens_to_ids("Ċ")

    @pytest.mark.parametrize(
        ("messages", "told"),
        [
            ("hello", "not str"),
            ({"role": "user", "content": "x"}, "not dict"),
            (None, "not NoneType"),
            ([], "empty"),
            (["hello"], r"messages\[0\] is str"),
            ([MESSAGES], r"messages\[0\] is list"),
            ([{"content": "x"}], 'no "role"'),
            ([*MESSAGES, {"role": "user"}], r'messages\[1\] has no "content"'),
        ],
    )
    def test_malformed_messages(self, messages: Any, told: str) -> None:
        with pytest.raises(ConfigError, match=told):
            pair(chat_tokenizer(chat_template=CHATML)).encode_chat(messages)

    def test_no_template(self) -> None:
        shared = pair(chat_tokenizer())
        assert not shared.has_chat_template
        with pytest.raises(ConfigError, match="this tokenizer has none"):
            shared.encode_chat(MESSAGES)

    @pytest.mark.parametrize("template", ["{{ raise_exception('no system') }}", "{% if %}"])
    def test_an_error_of_the_template(self, template: str) -> None:
        shared = pair(chat_tokenizer(chat_template=template))
        with pytest.raises(ConfigError, match="the chat template refused"):
            shared.encode_chat(MESSAGES)

    def test_the_result_stays_one_list(self) -> None:
        with pytest.raises(ConfigError, match="'tokenize'"):
            pair(chat_tokenizer(chat_template=CHATML)).encode_chat(MESSAGES, tokenize=False)
