"""What cannot be done is refused clearly, harms no neighbour and leaves the next call working."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import ReferenceOf, assert_same
from tiny_families import build_family
from tokenizers import Tokenizer
from toy import (
    EOS,
    PROMPTS,
    SPECIALS,
    DecoderOf,
    Family,
    Pair,
    build_model,
    fresh_pair,
    pair,
    token_id,
    tokenizer,
    vocabulary,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from waiting import WAIT_S, wait_until

from foreal_core import (
    ConfigError,
    ContextOverflowError,
    EngineClosedError,
    FoReaLConfig,
    FoReaLDecoder,
    FoReaLError,
    Generation,
    IncompatibleModelsError,
    ModelLoadError,
    NonFiniteLogitsError,
    OutOfMemoryError,
    UnsupportedModelError,
)

SETTINGS = FoReaLConfig(lead_count=2, hit_threshold=1, max_new_tokens=25, seed=6)
LONG = FoReaLConfig(policy="draft", max_new_tokens=400, seed=1)


def assert_works(decoder: FoReaLDecoder, family: Family, reference_of: ReferenceOf) -> None:
    """Every row of the decoder still writes what the method says."""
    prompts = [list(pair(family).tokenizer(text).input_ids) for text in PROMPTS]
    prompts += [[*prompt, 11] for prompt in prompts]
    together = decoder.generate(prompts, SETTINGS, seeds=[6] * len(prompts))
    for prompt, written in zip(prompts, together, strict=True):
        assert_same(written, reference_of(family).generate(prompt, SETTINGS), SETTINGS)


# -- arguments ----------------------------------------------------------------------------------


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


# -- pairs --------------------------------------------------------------------------------------


def shuffled_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokens, two of them with each other's id."""
    first, second = byte_word(" Wait"), byte_word(" Hmm")
    text = tokenizer().backend_tokenizer.to_str()
    swapped = text.replace(f'"{first}"', '"#"').replace(f'"{second}"', f'"{first}"')
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(swapped.replace('"#"', f'"{second}"')),
        eos_token=EOS,
        pad_token=SPECIALS[1],
    )


def byte_word(text: str) -> str:
    return vocabulary()[token_id(text)]


def test_tokenizers_that_do_not_fit() -> None:
    two = fresh_pair("qwen2")
    with pytest.raises(IncompatibleModelsError) as caught:
        FoReaLDecoder(two.leader, two.draft, two.tokenizer, draft_tokenizer=shuffled_tokenizer())
    message = str(caught.value)
    first = min(token_id(" Wait"), token_id(" Hmm"))
    assert str(first) in message
    assert "Wait" in message
    assert "Hmm" in message


def test_a_draft_whose_vocabulary_is_too_small() -> None:
    two = fresh_pair("qwen2")
    small = build_model("qwen2", seed=1, vocab_size=40, tie_word_embeddings=True)
    with pytest.raises(IncompatibleModelsError):
        FoReaLDecoder(two.leader, small, two.tokenizer)


def test_special_tokens_may_differ(reference_of: ReferenceOf) -> None:
    """As R1-Distill and Qwen2.5: special ids that mean other things are never the draft's."""
    two = fresh_pair("qwen2")
    names = ("<|stop|>", "<|filler|>", "<|human|>", "<|robot|>")
    others = tokenizer(names)
    with FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, draft_tokenizer=others, max_batch_size=4
    ) as decoder:
        assert_works(decoder, "qwen2", reference_of)


def test_padded_vocabularies_fit(reference_of: ReferenceOf) -> None:
    """The draft's table has rows that no token has; it never writes them, however likely."""
    two = fresh_pair("qwen2")
    size = len(vocabulary())
    padded = build_model("qwen2", seed=1, vocab_size=size + 26)
    for name, value in padded.state_dict().items():
        mine = two.draft.state_dict()[name]
        value[: len(mine)] = mine
    padded.get_output_embeddings().weight[size:] *= 20
    with FoReaLDecoder(two.leader, padded, two.tokenizer, max_batch_size=2) as decoder:
        for seed, prompt in enumerate(PROMPTS):
            written = decoder.generate(
                prompt, lead_count=1, hit_threshold=0, max_new_tokens=30, seed=seed
            )
            assert max(written.token_ids) < size
            assert "draft" in written.authors
        alone = decoder.generate(PROMPTS[1], policy="draft", max_new_tokens=20)
        assert max(alone.token_ids) < size


REFUSED = {
    "bert": "an encoder",
    "jamba": "several tokens that it reads at once",
    "rwkv": "a cache of transformers",
    "bloom": "AttentionInterface",
}


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("role", ["leader", "draft"])
def test_a_model_that_cannot_share_a_text(role: str, family: str) -> None:
    two = fresh_pair("qwen2")
    model = build_family(family, as_decoder=False)
    models = {"leader": two.leader, "draft": two.draft, role: model}
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        FoReaLDecoder(models["leader"], models["draft"], two.tokenizer)
    for accepted in (two.leader, two.draft):
        assert accepted.config._attn_implementation == "sdpa", "it is no longer its owner's"


def test_a_missing_model(tmp_path: Path) -> None:
    two = fresh_pair("qwen2")
    two.leader.save_pretrained(tmp_path / "leader")
    two.tokenizer.save_pretrained(tmp_path / "leader")
    (tmp_path / "empty").mkdir()
    there, missing, empty = (str(tmp_path / name) for name in ("leader", "missing", "empty"))
    for leader, draft, culprit in (
        (missing, there, "missing"),
        (there, missing, "missing"),
        (empty, there, "empty"),
        (there, empty, "empty"),
    ):
        with pytest.raises(ModelLoadError, match=culprit):
            FoReaLDecoder.from_pretrained(leader, draft)


def test_a_folder_without_weights_or_tokenizer(tmp_path: Path) -> None:
    two = fresh_pair("qwen2")
    two.leader.save_pretrained(tmp_path / "no tokenizer")
    two.leader.config.save_pretrained(tmp_path / "no weights")
    two.tokenizer.save_pretrained(tmp_path / "no weights")
    for name in ("no tokenizer", "no weights"):
        with pytest.raises(ModelLoadError, match=name):
            FoReaLDecoder.from_pretrained(str(tmp_path / name), str(tmp_path / name))


# -- running ------------------------------------------------------------------------------------

# A prompt with this token poisons a model whose embedding of it is no number. No toy writes it.
POISON = token_id("<|user|>")


def poisoned(role: str, value: float) -> Pair:
    two = fresh_pair("qwen2")
    two.model(role).get_input_embeddings().weight[POISON] = value
    return two


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["leader", "draft"])
def test_logits_that_are_no_numbers(role: str, value: float, reference_of: ReferenceOf) -> None:
    two = poisoned(role, value)
    bad = [11, POISON, 15, 40]
    settings = SETTINGS.with_overrides(policy=role)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        for _ in range(4):  # whichever row it gets
            with pytest.raises(NonFiniteLogitsError, match=role) as caught:
                decoder.generate(bad, settings)
            # It is charged all the same.
            assert caught.value.cost is not None
            assert caught.value.cost.flops[role] > 0
            assert caught.value.cost.completion_tokens == 0
        with pytest.raises(NonFiniteLogitsError):
            list(decoder.stream(bad, settings))
        with pytest.raises(NonFiniteLogitsError):
            asyncio.run(decoder.agenerate(bad, settings))
        # The poisoned slots are used again, and nothing of them is left.
        assert_works(decoder, "qwen2", reference_of)


@pytest.mark.parametrize("role", ["leader", "draft"])
def test_neighbours_survive_a_poisoned_request(role: str, reference_of: ReferenceOf) -> None:
    two = poisoned(role, float("nan"))
    prompts = [list(two.tokenizer(text).input_ids) for text in PROMPTS]
    failures: list[BaseException | Generation] = []
    written: dict[int, Generation] = {}

    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:

        async def ask_all() -> list[BaseException | Generation]:
            asked = []
            for prompt in prompts:
                asked.append(decoder.agenerate(prompt, SETTINGS))
                poison = [*prompt, POISON, 11]
                asked.append(decoder.agenerate(poison, SETTINGS.with_overrides(policy=role)))
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), WAIT_S)

        answers = asyncio.run(ask_all())
        failures = answers[1::2]
        written = dict(enumerate(answers[0::2]))
        assert_works(decoder, "qwen2", reference_of)
        assert decoder.stats()["free_rows"] == 4
    assert all(isinstance(failure, NonFiniteLogitsError) for failure in failures)
    for number, prompt in enumerate(prompts):
        assert_same(written[number], reference_of("qwen2").generate(prompt, SETTINGS), SETTINGS)


@contextmanager
def out_of_memory_if(
    model: PreTrainedModel, too_large: Callable[[torch.Tensor], bool]
) -> Iterator[list[int]]:
    """The device runs out of memory in passes over input ids that are `too_large`."""
    forward, sizes = model.forward, []

    def limited(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"]
        if too_large(ids):
            sizes.append(ids.shape[0])
            raise torch.OutOfMemoryError("simulated: no memory left")
        return forward(*args, **kwargs)

    model.forward = limited
    try:
        yield sizes
    finally:
        model.forward = forward


@pytest.mark.parametrize("role", ["leader", "draft"])
@pytest.mark.parametrize("fits", [1, 2])
def test_a_batch_that_does_not_fit_shrinks(role: str, fits: int, reference_of: ReferenceOf) -> None:
    two = fresh_pair("qwen2")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=8) as decoder:
        with out_of_memory_if(two.model(role), lambda ids: ids.shape[0] > fits) as failed:
            assert_works(decoder, "qwen2", reference_of)
        assert failed, "the batch never was too large: nothing was tested"
        assert_works(decoder, "qwen2", reference_of)


@pytest.mark.parametrize("role", ["leader", "draft"])
def test_a_request_that_never_fits_fails_alone(role: str, reference_of: ReferenceOf) -> None:
    two = fresh_pair("qwen2")
    settings = SETTINGS.with_overrides(policy=role)
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        with out_of_memory_if(two.model(role), lambda ids: True):
            with pytest.raises(OutOfMemoryError):
                decoder.generate("Wait", settings)
            with pytest.raises(OutOfMemoryError):
                decoder.generate(list(PROMPTS), settings)
            with pytest.raises(OutOfMemoryError):
                list(decoder.stream("Wait", settings))
        assert_works(decoder, "qwen2", reference_of)
        with out_of_memory_if(two.model(role), lambda ids: ids.shape[1] > 50):

            async def ask() -> list[Any]:
                asked = [decoder.agenerate(text, settings) for text in ([11] * 60, *PROMPTS)]
                return await asyncio.wait_for(
                    asyncio.gather(*asked, return_exceptions=True), WAIT_S
                )

            large, *small = asyncio.run(ask())
        assert isinstance(large, OutOfMemoryError)
        assert all(isinstance(one, Generation) for one in small)
        alone = [decoder.generate(text, settings).token_ids for text in PROMPTS]
        assert [one.token_ids for one in small] == alone
        assert decoder.stats()["free_rows"] == 4


@pytest.mark.parametrize("static", [False, True])
def test_memory_that_runs_out_while_a_cache_grows_leaves_it_whole(
    static: bool, reference_of: ReferenceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer has grown, the second has not, and a request is at work in the old ones."""
    two = fresh_pair("qwen2")
    running = SETTINGS.with_overrides(policy="leader", max_new_tokens=60)
    long, short = [11] * 300, list(two.tokenizer("Wait").input_ids)
    plain, full, refused = torch.zeros, True, 0

    def limited(*size: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal refused
        if full and len(size) == 4 and size[2] > 320:
            # Keys and values of the first layer find room, those of the second do not.
            refused += 1
            if refused % 3 == 0:
                raise torch.OutOfMemoryError("simulated: no memory left")
        return plain(*size, **kwargs)

    with FoReaLDecoder(
        two.leader, two.draft, two.tokenizer, max_batch_size=2, static_shapes=static
    ) as decoder:
        expected = decoder.generate(short, running).token_ids
        expected_long = decoder.generate(long, running).token_ids
        stream = decoder.stream(short, running)
        next(stream)
        monkeypatch.setattr(torch, "zeros", limited)
        with pytest.raises(OutOfMemoryError):
            decoder.generate(long, running)
        assert refused >= 3
        full = False
        assert decoder.generate(long, running).token_ids == expected_long
        list(stream)
        assert stream.result.token_ids == expected
        assert_works(decoder, "qwen2", reference_of)


def test_an_error_of_the_model_reaches_the_caller(reference_of: ReferenceOf) -> None:
    """Whatever a model raises, nobody waits for ever and the engine lives on."""
    two = fresh_pair("qwen2")
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=4) as decoder:
        forward = two.draft.forward

        def broken(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("the model is broken")

        two.draft.forward = broken
        raised: list[BaseException] = []

        def ask() -> None:
            try:
                decoder.generate("Wait", policy="draft")
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(WAIT_S)
        two.draft.forward = forward
        assert len(raised) == 1
        assert "broken" in f"{raised[0]} {raised[0].__cause__}"
        assert_works(decoder, "qwen2", reference_of)


# -- the end ------------------------------------------------------------------------------------


def test_a_closed_decoder() -> None:
    two = fresh_pair("qwen2")
    decoder = FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=2)
    decoder.generate("Wait", max_new_tokens=3)
    decoder.close()
    decoder.close()  # twice is no error
    with pytest.raises(EngineClosedError):
        decoder.generate("Wait")
    with pytest.raises(EngineClosedError):
        list(decoder.stream("Wait"))
    with pytest.raises(EngineClosedError):
        asyncio.run(decoder.agenerate("Wait"))

    async def astream() -> None:
        async for _ in decoder.astream("Wait"):
            pass

    with pytest.raises(EngineClosedError):
        asyncio.run(asyncio.wait_for(astream(), WAIT_S))
    # The models are free for the next decoder.
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as second:
        assert second.generate("Wait", max_new_tokens=3).token_ids


@pytest.mark.usefixtures("slow_models")
def test_closing_ends_what_runs_and_what_waits() -> None:
    two = fresh_pair("gemma3")
    decoder = FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=2)
    streams = [decoder.stream(PROMPTS[0], LONG) for _ in range(5)]
    next(streams[0])
    raised: list[BaseException] = []

    def read(stream: Any) -> None:
        try:
            for _ in stream:
                pass
        except FoReaLError as error:
            raised.append(error)

    readers = [threading.Thread(target=read, args=(one,), daemon=True) for one in streams]
    for reader in readers:
        reader.start()
    decoder.close()
    for reader in readers:
        reader.join(WAIT_S)
    assert len(raised) == len(streams)
    assert all(isinstance(error, EngineClosedError) for error in raised)
    with pytest.raises(EngineClosedError):
        _ = streams[0].result


def test_a_dropped_decoder_ends_its_thread() -> None:
    before = threading.active_count()
    two = fresh_pair("qwen2")
    decoder = FoReaLDecoder(two.leader, two.draft, two.tokenizer, max_batch_size=2)
    decoder.generate("Wait", max_new_tokens=3)
    del decoder
    wait_until(lambda: threading.active_count() == before, "its thread lives on")
