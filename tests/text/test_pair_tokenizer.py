"""One tokenizer for two models: what their vocabularies share, and prompts that both read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_tokenizers import byte_level, sentencepiece
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from foreal_core.errors import ConfigError, IncompatibleModelsError
from foreal_core.text.pair_tokenizer import PairTokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
