"""An error ends its own request and no other: of a policy, of a request's state, of a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from reference import ReferenceOf
from reference_checks import assert_same
from small_decoders import PROMPT, SETTINGS, SHORT, assert_works
from stress import live
from toy import PROMPTS, Pair, fresh_pair, token_id
from waiting import WAIT_S

from foreal_core import FoReaLDecoder, FoReaLError, Generation, NonFiniteLogitsError
from foreal_core.policies import Write


def raises_at(when: str) -> Callable[..., Iterator[Any]]:
    def failing(config: Any, gate: Any) -> Iterator[Any]:
        if when == "first":
            raise RuntimeError("of the policy")
        yield Write("leader")
        if when == "later":
            raise RuntimeError("of the policy")
        if when == "wrong":
            yield "leader"
        if when == "panics":
            raise KeyError(5)

    if when == "factory":

        def unmade(config: Any, gate: Any) -> Iterator[Any]:
            raise RuntimeError("of the policy")

        return unmade
    return failing


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ("factory", "policy 'unmade' failed: RuntimeError: of the policy"),
        ("first", "policy 'failing' failed: RuntimeError: of the policy"),
        ("later", "policy 'failing' failed: RuntimeError: of the policy"),
        ("panics", "policy 'failing' failed: KeyError: 5"),
        ("wrong", r"policy 'failing' yielded 'leader'"),
        ("ends", "policy 'failing' ended before the text did"),
    ],
)
def test_a_policy_that_fails_ends_its_request_alone(
    when: str, says: str, decoder: FoReaLDecoder
) -> None:
    neighbours = [decoder.submit(text, SHORT, max_new_tokens=40) for text in PROMPTS[:3]]
    with pytest.raises(FoReaLError, match=says):
        decoder.generate(PROMPT, policy=raises_at(when), max_new_tokens=200, min_tokens=200)
    for text, future in zip(PROMPTS, neighbours, strict=False):
        assert future.result().token_ids == (
            decoder.generate(text, SHORT, max_new_tokens=40).token_ids
        )


@pytest.mark.parametrize("part", ["next_author", "next_chunk", "take", "adjustment"])
def test_an_error_in_one_requests_state_ends_it_alone(
    part: str, decoder: FoReaLDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that fails: here it is told by the request's seed."""
    from foreal_core.request.sequence import Sequence

    sound = getattr(Sequence, part)

    def fails(self: Sequence, *arguments: Any) -> Any:
        if self.seed == 13 and len(self.tokens) > len(PROMPT) + 2:
            raise LookupError("thirteen")
        return sound(self, *arguments)

    expected = decoder.generate(PROMPT, SHORT)
    monkeypatch.setattr(Sequence, part, fails)
    neighbours = [decoder.submit(PROMPT, SHORT) for _ in range(2)]
    with pytest.raises(FoReaLError, match=r"LookupError.*thirteen"):
        decoder.generate(PROMPT, SHORT, seed=13, max_new_tokens=40, min_tokens=40)
    assert [f.result().token_ids for f in neighbours] == [expected.token_ids] * 2


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


def test_a_short_life_of_everything_that_can_go_wrong() -> None:
    """Requests that fail, leave, call back and come again; `python tests/stress.py` is a long
    one."""
    requests = 150
    life = live(requests, seed=1)
    assert not life.wrong
    # How many meet a full queue hangs on the clock; of the others many end by themselves.
    assert 4 * len(life.survivors) > requests - life.ends["queue full"] > 0
    assert {"policy raised", "left open", "cancelled"} <= life.ends.keys()
