"""What a call takes: prompts, chats, settings, seeds, sizes. The error names what is wrong."""

from __future__ import annotations

import asyncio

import pytest
from reference import ReferenceOf
from small_decoders import assert_works
from toy import DecoderOf, fresh_pair, pair

from foreal_core import ConfigError, ContextOverflowError, FoReaLConfig, FoReaLDecoder


def test_prompts_come_as_text_ids_and_chats(decoder_of: DecoderOf) -> None:
    decoder, tokenizer = decoder_of("qwen2"), pair("qwen2").tokenizer
    settings = FoReaLConfig(max_new_tokens=12, seed=1)
    text = "So we add 1 and 2."
    chat = [{"role": "user", "content": text}]
    chat_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    from_text, from_ids = decoder.generate(
        [text, list(tokenizer(text).input_ids)], settings, seeds=[1, 1]
    )
    assert from_text.token_ids == from_ids.token_ids
    from_chat = decoder.generate(messages=chat, config=settings)
    assert from_chat.token_ids == decoder.generate(list(chat_ids), settings).token_ids
    [from_batch] = decoder.generate(messages=[chat], config=settings)
    assert from_batch.token_ids == from_chat.token_ids


def test_overrides_win_over_the_config(decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(max_new_tokens=30, lead_probability=0.0, seed=1)
    written = decoder_of("qwen2").generate("Wait", settings, max_new_tokens=4, lead_probability=1.0)
    assert len(written.token_ids) <= 4
    assert written.authors[0] == "leader"


def test_a_seed_is_drawn_and_named_where_none_is_given(decoder_of: DecoderOf) -> None:
    settings = FoReaLConfig(lead_probability=0.5, lead_count=2, hit_threshold=0, temperature=1.0)
    first = decoder_of("gemma3").generate("Wait", settings, max_new_tokens=30)
    seed = first.cost.settings["seed"]
    assert isinstance(seed, int)
    again = decoder_of("gemma3").generate("Wait", settings, max_new_tokens=30, seed=seed)
    assert again.token_ids == first.token_ids
    assert again.authors == first.authors


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("lead_count", value) for value in (-1, 1.5, "3", None, True)),
        *(("lead_probability", value) for value in (-0.1, 1.01, "0.5", float("nan"), None, True)),
        *(("hit_threshold", value) for value in (-1, 0.5, None)),
        *(("hit_window", value) for value in ("before", None, 1)),
        *(("sentence_boundary", value) for value in ("regex", None)),
        *(("max_new_tokens", value) for value in (0, -5, 2.0, None)),
        *(("temperature", value) for value in (-1.0, float("inf"), float("nan"), "hot")),
        *(("top_p", value) for value in (0.0, 1.5, -0.1)),
        *(("top_k", value) for value in (-1, 2.5)),
        *(("min_p", value) for value in (-0.1, 1.1)),
        *(("repetition_penalty", value) for value in (0.0, -1.0, float("inf"))),
        *(("stop", value) for value in ("", [""], [1], 5, None, ["a", ""])),
        *(("seed", value) for value in (-1, 2**63, 1.0, "7")),
        *(("speculate", value) for value in (1, "yes", None)),
        *(("policy", value) for value in ("beam", None)),
        *(("draft_length", value) for value in (0, 1.5)),
    ],
)
def test_wrong_settings(field: str, value: object, decoder_of: DecoderOf) -> None:
    with pytest.raises(ConfigError) as caught:
        FoReaLConfig(**{field: value})  # type: ignore[arg-type]
    message = str(caught.value)
    assert field in message
    assert repr(value) in message
    assert "must be" in message
    with pytest.raises(ConfigError, match=field):
        decoder_of("qwen2").generate("Wait", **{field: value})


def test_an_unknown_setting_is_named_with_its_likeness(decoder_of: DecoderOf) -> None:
    with pytest.raises(ConfigError, match=r"lead_cuont.*lead_count"):
        decoder_of("qwen2").generate("Wait", lead_cuont=3)
    with pytest.raises(ConfigError, match="lead_cuont"):
        decoder_of("qwen2").stream("Wait", lead_cuont=3)


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], ["Wait", ""], ["Wait", []], [[], []]],
    ids=repr,
)
def test_an_empty_prompt(prompt: object, decoder_of: DecoderOf) -> None:
    with pytest.raises(ConfigError, match="empty"):
        decoder_of("qwen2").generate(prompt)


class Unknown:
    def __repr__(self) -> str:
        return "Unknown()"


@pytest.mark.parametrize(
    "prompt",
    [5, 1.5, b"Wait", {"a": 1}, [1, "a"], [True, False], [1.0], [-1], [10**6], [[1], 5], Unknown()],
    ids=repr,
)
def test_a_wrong_prompt(prompt: object, decoder_of: DecoderOf) -> None:
    with pytest.raises(ConfigError):
        decoder_of("qwen2").generate(prompt)


@pytest.mark.parametrize("messages", [[], "hi", [{"role": "user"}], [{"content": "x"}], [5], 5])
def test_wrong_messages(messages: object, decoder_of: DecoderOf) -> None:
    with pytest.raises(ConfigError):
        decoder_of("qwen2").generate(messages=messages)


def test_a_prompt_or_messages_and_not_both(decoder_of: DecoderOf) -> None:
    decoder, chat = decoder_of("qwen2"), [{"role": "user", "content": "Wait"}]
    for ask in (decoder.generate, decoder.stream):
        with pytest.raises(ConfigError, match="both"):
            ask("Wait", messages=chat)
        with pytest.raises(ConfigError, match="neither"):
            ask()
    with pytest.raises(ConfigError):
        decoder.stream(["one", "two"])  # a stream is of one text
    with pytest.raises(ConfigError, match="dict"):
        decoder.generate("Wait", {"lead_count": 3})  # type: ignore[arg-type]


def test_messages_need_a_chat_template() -> None:
    two = fresh_pair("qwen2")
    two.tokenizer.chat_template = None
    with (
        FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=1) as decoder,
        pytest.raises(ConfigError, match="template"),
    ):
        decoder.generate(messages=[{"role": "user", "content": "Wait"}])


@pytest.mark.parametrize("argument", ["max_batch_size", "max_context"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True])
def test_wrong_sizes(argument: str, value: object) -> None:
    two = fresh_pair("qwen2")
    with pytest.raises(ConfigError, match=argument):
        FoReaLDecoder(two.leader, two.draft, two.tokenizer, **{argument: value})


def test_more_context_than_the_models_take() -> None:
    two = fresh_pair("qwen2")
    with pytest.raises(ConfigError, match=r"max_context=513.*512"):
        FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_context=513)


def test_a_prompt_longer_than_the_context(reference_of: ReferenceOf) -> None:
    two = fresh_pair("qwen2")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_context=64) as decoder:
        for size in (64, 65, 500):
            with pytest.raises(ContextOverflowError, match=rf"{size}.*64"):
                decoder.generate([11] * size)
            with pytest.raises(ContextOverflowError):
                decoder.stream([11] * size)
            with pytest.raises(ContextOverflowError):
                decoder.generate(["Wait", [11] * size])
            with pytest.raises(ContextOverflowError):
                asyncio.run(decoder.agenerate([11] * size))
        assert len(decoder.generate([11] * 63).token_ids) == 1
        assert_works(decoder, "qwen2", reference_of)
