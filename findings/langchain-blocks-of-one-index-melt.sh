#!/usr/bin/env bash
# langchain-core 1.8.3: content blocks of different types that carry the same index become one block
# when chunks are added, of the first one's type and with the keys of both; blocks without an index
# are never joined, not even two texts that follow each other.
#
# Guessed: blocks are joined by type, and two neighbouring texts become one.
# Matters to: chat models that stream reasoning and then text as content blocks.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'langchain-core==1.8.3'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from langchain_core.messages import AIMessageChunk


def joined(*blocks: dict) -> list:
    first, second = (AIMessageChunk(content=[block]) for block in blocks)
    return (first + second).content


thought = {"type": "reasoning", "reasoning": "6 times 7 is 42."}
answer = {"type": "text", "text": "42"}
same = joined({**thought, "index": 0}, {**answer, "index": 0})
bare = joined(answer, {"type": "text", "text": "."})
print("langchain-core", version("langchain-core"))
print("one index for both:", same)
print("no index:          ", bare)
assert same == [{**thought, "text": "42", "index": 0}], "CHANGED"
assert bare == [answer, {"type": "text", "text": "."}], "CHANGED"
print("as stated: the answer became a key of the reasoning block")
PY
