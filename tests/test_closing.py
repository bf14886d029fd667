"""A constrained answer ends within its limit, whatever the models want to write."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="the extra 'json' is not installed")
pytest.importorskip("jsonschema", reason="needs jsonschema")

import jsonschema
import numpy as np
from hypothesis import example, given, settings, strategies as st
from transformers import AutoTokenizer

from foreal_core import FoReaLConfig, FoReaLDecoder
from foreal_core.demo import pair_paths, problems
from foreal_core.grammar.constraint import Constraint, ConstraintFactory
from foreal_core.grammar.continuation import Continuation

TOKENIZER = AutoTokenizer.from_pretrained(pair_paths()[0])
END = TOKENIZER.eos_token_id
FACTORY = ConstraintFactory(TOKENIZER, len(TOKENIZER), [END])
PROMPT = [TOKENIZER.convert_tokens_to_ids("</think>")]

LEAVES: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "minLength": 4},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]*$"},
    {"type": "string", "format": "date"},
    {"type": "integer"},
    {"type": "number", "minimum": 5, "exclusiveMaximum": 5.5},
    {"type": "boolean"},
    {"enum": ["a", "a very long value indeed, longer than all others", None]},
    {"const": "ü€"},
]
# Nothing but the limit ends these.
TREE: dict[str, Any] = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "label": {"type": "string"},
                "branches": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            },
            "required": ["label", "branches"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/tree",
}
DEEPER_FIRST: dict[str, Any] = {
    "$defs": {
        "way": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {name: part},
                    "required": [name],
                    "additionalProperties": False,
                }
                for name, part in (("deeper", {"$ref": "#/$defs/way"}), ("out", {"type": "null"}))
            ]
        }
    },
    "$ref": "#/$defs/way",
}


def containers(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["n", "name", "and a long name"])
    objects = st.tuples(st.dictionaries(names, parts, min_size=1), st.integers(0, 3)).map(
        lambda drawn: {
            "type": "object",
            "properties": drawn[0],
            "required": list(drawn[0])[: drawn[1]],
            "additionalProperties": False,
        }
    )
    arrays = st.tuples(parts, st.integers(0, 2)).map(
        lambda drawn: {"type": "array", "items": drawn[0], "minItems": drawn[1]}
    )
    return objects | arrays | st.lists(parts, min_size=2, max_size=3).map(lambda a: {"anyOf": a})


SCHEMAS = st.recursive(st.sampled_from(LEAVES), containers, max_leaves=6)


def write(constraint: Constraint, limit: int, seed: int, *, detours: bool = False) -> list[int]:
    """What a model writes that never wants to end: any token but the end that the grammar allows.
    With detours it goes astray before each token, as proposals do that are rejected later."""

    def draw(completion: list[int], chance: random.Random) -> int:
        allowed = constraint.allowed(completion)
        assert allowed is not None
        options = [token for token in np.flatnonzero(allowed).tolist() if token != END] or [END]
        return constraint.fitted(completion, chance.choice(options))

    chance, astray = random.Random(seed), random.Random(seed + 1)
    completion: list[int] = []
    while len(completion) < limit:
        if detours:
            proposal = [*completion]
            while len(proposal) < min(len(completion) + 3, limit) and proposal[-1:] != [END]:
                proposal.append(draw(proposal, astray))
        token = draw(completion, chance)
        if token == END:
            break
        completion.append(token)
    return completion


@settings(max_examples=60, deadline=None, derandomize=True)
@given(schema=SCHEMAS, spare=st.integers(0, 60), seed=st.integers(0, 10**6))
@example(schema=TREE, spare=0, seed=1)
@example(schema=TREE, spare=50, seed=1)
@example(schema=DEEPER_FIRST, spare=0, seed=1)
@example(schema=DEEPER_FIRST, spare=50, seed=1)
def test_the_answer_ends_in_the_schema(schema: dict[str, Any], spare: int, seed: int) -> None:
    config = FoReaLConfig(json_schema=schema)
    shortest = FACTORY.compile(config, PROMPT, 0)._ways[0].tokens
    assert shortest is not None
    limit = len(shortest) + spare
    completion = write(FACTORY.compile(config, PROMPT, limit), limit, seed)
    jsonschema.validate(json.loads(TOKENIZER.decode(completion)), schema)
    # What was proposed and rejected in between leaves no trace: speculation changes no text.
    again = write(FACTORY.compile(config, PROMPT, limit), limit, seed, detours=True)
    assert again == completion


def test_ways_to_the_end_are_short() -> None:
    properties = {"n": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "array"}}
    schema = {"type": "object", "properties": properties, "required": ["n", "s", "l"]}
    way = FACTORY.compile(FoReaLConfig(json_schema=schema), PROMPT, 0)._ways[0].tokens
    assert json.loads(TOKENIZER.decode(way)) == {"n": 0, "s": "", "l": []}


def test_an_end_that_is_out_of_sight_is_found_in_time() -> None:
    """More items than a search looks ahead: ways appear only when most of them are written."""
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 300}
    config = FoReaLConfig(json_schema=schema)
    assert FACTORY.compile(config, PROMPT, 0)._ways[0].tokens is None
    limit = 1700
    completion = write(FACTORY.compile(config, PROMPT, limit), limit, seed=1)
    assert len(json.loads(TOKENIZER.decode(completion))) >= 300


def test_a_limit_too_short_for_any_answer_changes_nothing() -> None:
    config = FoReaLConfig(json_schema={"type": "string", "minLength": 9})
    constraint = FACTORY.compile(config, PROMPT, 5)
    assert len(write(constraint, 5, seed=1)) == 5


@pytest.mark.parametrize("spare", [0, 1, 2, 7, 40, 200])
def test_thinking_leaves_room_for_an_answer(spare: int) -> None:
    opened = [TOKENIZER.convert_tokens_to_ids("<think>")]
    (end,) = PROMPT
    config = FoReaLConfig(json_schema={"type": "string", "minLength": 9})
    shortest = len(FACTORY.compile(config, PROMPT, 0)._ways[0].tokens or ())
    limit = 1 + shortest + spare  # the end of the thinking and the answer
    constraint = FACTORY.compile(config, opened, limit)
    completion: list[int] = []
    chance = random.Random(spare)
    while len(completion) < limit and completion[-1:] != [END]:
        allowed = constraint.allowed(completion)
        thinking = end not in completion
        assert (allowed is None) == thinking
        options = range(len(TOKENIZER)) if allowed is None else np.flatnonzero(allowed).tolist()
        options = [token for token in options if token not in (end, END)] or [END]
        completion.append(constraint.fitted(completion, chance.choice(options)))
    thought, _, answer = (
        TOKENIZER.decode(completion).removesuffix("<|im_end|>").partition("</think>")
    )
    assert len(json.loads(answer)) >= 9
    if spare > 3 * shortest:
        assert thought and limit - completion.index(end) - 1 >= 2 * shortest


def test_who_ends_the_text_in_the_thinking_must_answer() -> None:
    opened = [TOKENIZER.convert_tokens_to_ids("<think>")]
    constraint = FACTORY.compile(FoReaLConfig(json_schema={"type": "integer"}), opened, 50)
    assert constraint.fitted([5, 6], END) == PROMPT[0]
    assert constraint.fitted([5, 6], 7) == 7
    assert constraint.fitted([*range(5, 53)], 7) == PROMPT[0]  # one token is left for the answer
    assert constraint.fitted([*range(5, 54)], 7) == 7  # and here none


JOKE = {
    "type": "object",
    "properties": {"setup": {"type": "string"}, "rating": {"type": ["integer", "null"]}},
    "required": ["setup"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def decoder(bundled: FoReaLDecoder) -> FoReaLDecoder:
    return bundled


@pytest.fixture(scope="module")
def prompts(decoder: FoReaLDecoder) -> list[list[int]]:
    """Chats whose thinking is over."""
    return [
        [*decoder.encode(messages=problem.messages), *PROMPT]
        for problem in problems("ledger", 78, 2)
    ]


@pytest.mark.parametrize(
    "setting",
    [
        {"policy": "leader"},
        {"policy": "draft"},
        {"policy": "speculative"},
        {"lead_count": 3, "hit_threshold": 1, "seed": 2},
        {"temperature": 1.5, "seed": 3, "lead_count": 4, "hit_threshold": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [20, 45])
def test_every_policy_ends_in_time(
    decoder: FoReaLDecoder, prompts: list[list[int]], setting: dict[str, Any], limit: int
) -> None:
    asked = {"json_schema": JOKE, "max_new_tokens": limit, **setting}
    together = decoder.generate(prompts, seeds=[2] * len(prompts), **asked)
    for generation in together:
        jsonschema.validate(json.loads(generation.text), JOKE)
        assert len(generation.token_ids) <= limit
    plain = [decoder.generate(p, speculate=False, **asked | {"seed": 2}) for p in prompts]
    assert [one.token_ids for one in plain] == [one.token_ids for one in together]
    assert [one.finish_reason for one in plain] == [one.finish_reason for one in together]


def test_only_a_shortened_answer_says_length(
    decoder: FoReaLDecoder, prompts: list[list[int]]
) -> None:
    schema = {"enum": ["yes", "no", "a long answer that takes quite a few tokens to write"]}
    asked = {"json_schema": schema, "policy": "leader"}
    whole = decoder.generate(prompts[0], max_new_tokens=100, **asked)
    length = len(whole.token_ids)
    assert whole.finish_reason == "stop"
    exact = decoder.generate(prompts[0], max_new_tokens=length, **asked)
    assert (exact.text, exact.finish_reason) == (whole.text, "stop")
    endless = decoder.generate(prompts[0], json_schema=JOKE, policy="leader", max_new_tokens=40)
    assert endless.finish_reason == "length"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("write", "write", "propose", "cut", "look back")), st.integers(0, 9)
        ),
        max_size=40,
    ),
    seed=st.integers(0, 10**6),
    thinking=st.booleans(),
)
def test_what_is_new_is_enough_to_follow_a_text(
    steps: list[tuple[str, int]], seed: int, thinking: bool
) -> None:
    """Written, proposed, taken back: what may come next is what a text read anew says."""
    prompt = [TOKENIZER.convert_tokens_to_ids("<think>")] if thinking else PROMPT
    config, limit = FoReaLConfig(json_schema=TREE), 60
    follower = FACTORY.compile(config, prompt, limit)
    chance, text, first = random.Random(seed), list(prompt), len(prompt)

    def asked(end: int, ahead: list[int]) -> list[int]:
        """What may follow; both must agree."""
        completion = Continuation(text, first, end, ahead)
        mask = follower.allowed(completion, completion.written)
        anew = FACTORY.compile(config, prompt, limit)
        expected = anew.allowed(list(completion))
        assert (mask is None) == (expected is None)
        options = range(len(TOKENIZER)) if mask is None else np.flatnonzero(mask).tolist()
        if mask is not None:
            assert options == np.flatnonzero(expected).tolist()
        token = chance.choice([one for one in options if one != END] or [END])
        fitted = follower.fitted(completion, token, completion.written)
        assert fitted == anew.fitted(list(completion), token)
        return [fitted] if fitted != END else []

    for step, size in steps:
        room = limit - (len(text) - first) - 3
        if step == "write" and room > 0:
            text += asked(len(text), [])
        elif step == "propose" and room > size:
            ahead: list[int] = []
            for _ in range(1 + size % 3):
                ahead += asked(len(text), ahead)
        elif step == "cut" and len(text) > first + size:
            del text[len(text) - size :]
            follower.cut(len(text) - first)
        elif step == "look back":
            asked(max(len(text) - size, first), [])
