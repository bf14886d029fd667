#!/usr/bin/env bash
# llguidance 1.9.1: a property that the schema names may be written as an additional one if a letter
# of its name is spelled as a \u escape, and then holds what additional properties hold.
#
# Guessed: "\u0061" is the name "a", to a grammar of JSON as to every reader, and follows its schema.
# Matters to: whoever trusts constrained JSON under "properties" with open "additionalProperties".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'llguidance==1.9.1' 'jsonschema==4.26.0'
"$work/venv/bin/python" - <<'PY'
import json
from importlib.metadata import version

import jsonschema
from llguidance import LLMatcher, LLTokenizer

schema = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "additionalProperties": {"type": "string"},
}
print("llguidance", version("llguidance"))
print("schema: ", json.dumps(schema))
tokenizer = LLTokenizer("byte")


def taken(text, **options):
    described = {**schema, "x-guidance": {"whitespace_flexible": False, **options}}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(described))
    assert not LLMatcher.validate_grammar(grammar, tokenizer)
    matcher = LLMatcher(tokenizer, grammar)
    ids = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


plain, escaped = '{"a":"x"}', '{"\\u0061":"x"}'
for text in (plain, escaped):
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    print(f"{text}: read as {json.loads(text)}, valid {valid}, taken {taken(text)}")
    assert not valid
assert not taken(plain) and taken(escaped), "CHANGED"
assert not taken(escaped, json_allowed_escapes='"\\bfnrt'), "CHANGED"
print('as stated: {"\\u0061":"x"} is taken, unless json_allowed_escapes leaves u out')
PY
