"""Every JSON schema is held or refused: shapes of every keyword, and schemas made at random."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="the extra 'json' is not installed")
pytest.importorskip("jsonschema", reason="reads what was written")

from hypothesis import given, settings, strategies as st
from json_shapes import SHAPES, Shape
from json_table import HEAD, PAGE, faults, row, table_in, validator_of
from random_writer import factory_of, prompt_ids, tokenizer_with, written

from foreal_core import ConfigError, FoReaLConfig, FoReaLError

TABLE = table_in(PAGE.read_text(encoding="utf-8"))


def test_the_table_has_every_shape() -> None:
    assert TABLE[: len(HEAD)] == list(HEAD) and len(TABLE) == len(HEAD) + len(SHAPES)
    assert len({shape.title for shape in SHAPES}) == len(SHAPES)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.title)
def test_the_table_says_what_is_so(shape: Shape) -> None:
    """One draw here; the table was made from more: python tests/json_table.py."""
    assert TABLE[len(HEAD) + SHAPES.index(shape)] == row(shape, seeds=[100])


UNREAD = ("uri-reference", "iri", "iri-reference", "uri-template", "idn-hostname")
READ = [shape for shape in SHAPES if shape.valid or shape.invalid]


@pytest.mark.parametrize("shape", READ, ids=lambda shape: shape.title)
def test_the_shapes_are_facts(shape: Shape) -> None:
    validator = validator_of(shape)
    assert all(validator.is_valid(json_exact(value)) for value in shape.valid)
    if shape.schema.get("format") not in UNREAD:
        assert not any(validator.is_valid(json_exact(value)) for value in shape.invalid)


def json_exact(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_float=Decimal)


# -- schemas at random -----------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "ab", 'q"t', "é"])
small = st.integers(0, 3)


def optional(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


def joined(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda all_of: {k: v for part in all_of for k, v in part.items()})


plain = st.one_of(
    st.sampled_from([True, {}, {"type": "null"}, {"type": "boolean"}, {"const": [1, {"x": None}]}]),
    st.builds(
        lambda values: {"enum": values}, st.lists(st.sampled_from([1, "a", None]), min_size=1)
    ),
    joined(
        st.sampled_from([{"type": "integer"}, {"type": "number"}, {"type": ["integer", "null"]}]),
        optional(minimum=st.integers(-5, 5), maximum=st.integers(3, 12), multipleOf=st.just(3)),
    ),
    joined(
        st.just({"type": "string"}),
        optional(
            minLength=small, maxLength=st.integers(2, 6), pattern=st.sampled_from(["^a", "b$"])
        ),
    ),
    st.builds(lambda f: {"type": "string", "format": f}, st.sampled_from(["date", "time", "ipv4"])),
)


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=2)
    objects = optional(
        properties=st.dictionaries(names, inner, max_size=3),
        required=st.lists(names, max_size=2, unique=True),
        additionalProperties=st.one_of(st.booleans(), inner),
        patternProperties=st.dictionaries(st.sampled_from(["^x", "y$"]), inner, max_size=1),
        minProperties=small,
        maxProperties=st.integers(1, 3),
    )
    arrays = optional(items=inner, prefixItems=several, minItems=small, maxItems=st.integers(1, 3))
    return st.one_of(
        joined(st.just({"type": "object"}), objects),
        joined(st.just({"type": "array"}), arrays),
        joined(objects, arrays),
        optional(anyOf=several, allOf=several),
        st.builds(lambda one, two: {"oneOf": [one, two]}, inner, inner),
    )


schemas = st.recursive(plain, compound, max_leaves=5).filter(
    lambda schema: isinstance(schema, dict)
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(schema=schemas, seed=st.integers(0, 5))
def test_what_is_not_refused_is_held(schema: dict[str, Any], seed: int) -> None:
    with contextlib.suppress(ConfigError):  # before anything is written
        assert not list(faults(Shape("any", "made at random", schema), [seed]))


# -- what once went wrong --------------------------------------------------------------------------


def test_a_name_that_is_written_twice_counts_once() -> None:
    open_names = {"type": "object", "patternProperties": {"^[xy]$": {}}, "minProperties": 2}
    with pytest.raises(ConfigError, match="minProperties=2"):
        written(FoReaLConfig(json_schema=open_names), 0)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^\\u0001$"},
        {"allOf": [{"const": 1}, {"pattern": "^a$", "type": "string"}]},
        {"anyOf": []},
    ],
    ids=str,
)
def test_a_schema_that_nothing_follows_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="json_schema is not allowed"):
        written(FoReaLConfig(json_schema=schema), 0)


def test_a_dead_end_is_an_error_and_no_text() -> None:
    inside = {"type": "array", "items": {"type": "string", "pattern": "^\\u0001$"}, "minItems": 1}
    with pytest.raises(FoReaLError, match="cannot go on"):
        written(FoReaLConfig(json_schema=inside), 0)


def test_a_rejected_proposal_into_a_dead_end_leaves_no_trace() -> None:
    nothing = {"type": "string", "pattern": "^\\u0001$"}
    blind = {"type": "array", "prefixItems": [{"const": 2}, nothing], "minItems": 2}
    tokenizer = tokenizer_with()
    config = FoReaLConfig(json_schema={"anyOf": [{"const": [1]}, blind]})
    constraint = factory_of(tokenizer).compile(config, prompt_ids(tokenizer), 50)
    dead, alive = (tokenizer.encode(text, add_special_tokens=False) for text in ("[2, ", "[1"))
    for _ in range(2):
        for end in range(len(dead) + 1):
            mask = constraint.allowed(dead[:end])
        assert mask is not None and list(mask.nonzero()[0]) == [tokenizer.eos_token_id]
        assert constraint.fitted(dead, tokenizer.eos_token_id, proposed=True)
        mask = constraint.allowed(alive)
        assert mask is not None and mask[tokenizer.convert_tokens_to_ids("]")]
    with pytest.raises(FoReaLError, match="cannot go on"):
        constraint.fitted(dead, tokenizer.eos_token_id)


def test_messages_say_what_is_wrong_and_nothing_of_the_grammar() -> None:
    for schema, told in (
        ({"not": {"type": "integer"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "integer", "minimum": "a"}, "Expected f64 for 'minimum', got \"a\""),
        ({"enum": ["\u0001"]}, "enum holds the control character U+0001."),
    ):
        with pytest.raises(ConfigError) as caught:
            written(FoReaLConfig(json_schema=schema), 0)
        assert str(caught.value) == f"json_schema is not allowed: {told}"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 9),
    visits=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=12),
)
def test_what_may_come_next_hangs_on_the_text_alone(
    seed: int, visits: list[tuple[int, bool]]
) -> None:
    """Whatever was asked before, the end of the text among it, which llguidance takes without
    counting it."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}
    config, tokenizer = FoReaLConfig(json_schema=schema, max_new_tokens=60), tokenizer_with()
    text = written(config, seed)
    asked, fresh = (factory_of(tokenizer).compile(config, prompt_ids(tokenizer), 60) for _ in "12")
    answers = [fresh.allowed(text[:end]) for end in range(len(text) + 1)]
    for end, beyond in visits:
        end = min(end, len(text))
        if beyond:  # as proposals go beyond the end
            asked.allowed([*text, tokenizer.eos_token_id, *text[:2]])
        mask, expected = asked.allowed(text[:end]), answers[end]
        assert (mask is None) == (expected is None)
        assert mask is None or expected is None or (mask == expected).all()
