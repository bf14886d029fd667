"""Which two models can write one text: by their tokenizers, vocabularies and families."""

from __future__ import annotations

import pytest
from reference import ReferenceOf
from small_decoders import assert_works
from tiny_families import build_family
from tokenizers import Tokenizer
from toy import EOS, PROMPTS, SPECIALS, build_model, fresh_pair, token_id, tokenizer, vocabulary
from transformers import PreTrainedTokenizerFast

from foreal_core import FoReaLDecoder, IncompatibleModelsError, UnsupportedModelError


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
