#!/usr/bin/env bash
# xgrammar 0.2.9: a JSON string whose length is bounded (minLength or maxLength) may hold no escape at
# all: no quoted word, no line break, no backslash. Without a bound all of them are possible.
#
# Guessed: a bound on the length bounds the length.
# Matters to: schemas made from classes, where max_length is ordinary: a model that wants to quote
# somebody in such a field cannot.
#
# Installs torch, which xgrammar needs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'xgrammar==0.2.9' 'torch==2.13.0'
"$work/venv/bin/python" - <<'PY'
import json
from importlib.metadata import version

from xgrammar import Grammar, GrammarCompiler, GrammarMatcher, TokenizerInfo

tokens = [bytes([byte]) for byte in range(256)]
compiler = GrammarCompiler(TokenizerInfo([*tokens, b"</s>"], stop_token_ids=[256]))


def accepted(schema: dict, value: str) -> bool:
    grammar = compiler.compile_grammar(Grammar.from_json_schema(json.dumps(schema)))
    matcher = GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(json.dumps(value)) and matcher.is_terminated()


values = ["She said so.", 'She said "so".', "two\nlines", "a\\b"]
seen = {}
print("xgrammar", version("xgrammar"))
for bound in ({}, {"minLength": 1}, {"maxLength": 99}):
    seen[str(bound)] = [accepted({"type": "string", **bound}, value) for value in values]
    print(f"{bound!s:18}", dict(zip(map(json.dumps, values), seen[str(bound)])))
assert seen["{}"] == [True] * 4, "CHANGED"
assert seen["{'minLength': 1}"] == [True, False, False, False], "CHANGED"
assert seen["{'maxLength': 99}"] == [True, False, False, False], "CHANGED"
print("as stated: a bounded string takes no escape")
PY
