"""First Finish Search takes the shortest sample, whatever the clock says."""

from __future__ import annotations

import pytest
from toy import PROMPTS, DecoderOf, pair

from foreal_core import ConfigError, FoReaLConfig
from foreal_core.first_finish import first_finish
from foreal_core.randomness import stream_seed

CONFIG = FoReaLConfig(temperature=1.0, max_new_tokens=60, lead_count=3, hit_threshold=1)


@pytest.mark.parametrize("policy", ["foreal", "leader", "review"])
def test_the_shortest_sample_is_taken(policy: str, decoder_of: DecoderOf) -> None:
    decoder = decoder_of("llama")
    taken = set()
    for seed, prompt in enumerate(PROMPTS):
        config = CONFIG.with_overrides(policy=policy, seed=seed)
        # The slow way: every sample to its end, by itself.
        whole = [
            decoder.generate(prompt, config, seed=stream_seed(seed, number)) for number in range(5)
        ]
        shortest = min(range(5), key=lambda number: (len(whole[number].token_ids), number))
        found = first_finish(decoder, prompt, config, samples=5)
        assert found.sample == shortest
        assert found.first.token_ids == whole[shortest].token_ids
        others = whole[:shortest] + whole[shortest + 1 :]
        assert len(found.others) == 4
        for stopped, full in zip(found.others, others, strict=True):
            size = len(stopped.token_ids)
            assert stopped.token_ids == full.token_ids[:size]
            assert size == len(full.token_ids) or stopped.finish_reason == "cancelled"
        taken.add(shortest)
    assert len(taken) > 1
    decoder.check_integrity()


def test_one_sample_is_the_text_of_its_seed(decoder_of: DecoderOf) -> None:
    decoder, two = decoder_of("qwen2"), pair("qwen2")
    ids = list(two.tokenizer(PROMPTS[0]).input_ids)
    found = first_finish(decoder, ids, samples=1, temperature=0.7, seed=3, max_new_tokens=20)
    alone = decoder.generate(ids, temperature=0.7, seed=3, max_new_tokens=20)
    assert (found.first.token_ids, found.others) == (alone.token_ids, ())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"samples": 0, "temperature": 1.0}, "samples=0"),
        ({"samples": True, "temperature": 1.0}, "samples=True"),
        ({}, "temperature=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 1.0, "messages": [{"role": "user", "content": "x"}]}, "prompt"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    wrong: dict[str, object], said: str, decoder_of: DecoderOf
) -> None:
    decoder = decoder_of("llama")
    with pytest.raises(ConfigError, match=said):
        first_finish(decoder, PROMPTS[0], **wrong)  # type: ignore[arg-type]
    decoder.check_integrity()
