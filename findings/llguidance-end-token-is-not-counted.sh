#!/usr/bin/env bash
# llguidance 1.9.1: after a grammar that ended by itself the end-of-text token is consumed with
# success, but rollback(1) then takes back the last character. Where the grammar could have gone on,
# rollback(1) takes back the end-of-text token.
#
# Guessed: rollback(1) undoes the last consumed token in both cases.
# Matters to: speculative decoding under a grammar, which takes rejected tokens back by their number.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'llguidance==1.9.1'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")  # a token for each byte, and the end of text


def after_rollback(grammar: str) -> list[str]:
    """What may follow "abc", the end of text and a rollback by one token."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
    for token in [*b"abc", tokenizer.eos_token]:
        assert matcher.consume_token(token)
    assert matcher.rollback(1)
    allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
    return ["end of text" if one == tokenizer.eos_token else chr(one) for one in allowed]


open_end, closed_end = after_rollback("start: /[abc]+/"), after_rollback('start: "abc"')
print("llguidance", version("llguidance"))
print("could go on after abc:  then", open_end)
print("ended by itself at abc: then", closed_end)
assert open_end == ["a", "b", "c", "end of text"], "CHANGED"
assert closed_end == ["c"], "CHANGED"
print('as stated: the second rollback took the "c" back')
PY
