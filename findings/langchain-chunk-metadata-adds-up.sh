#!/usr/bin/env bash
# langchain-core 1.8.3: adding message chunks sums integers in response_metadata, unless both are
# equal, and joins strings even if they are equal. So a total depends on the order of its parts, and
# a finish reason that two chunks carry reads "stopstop".
#
# Guessed: the last value wins, or the values must agree.
# Matters to: chat models that put counts or reasons into more than one chunk of a stream.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'langchain-core==1.8.3'
"$work/venv/bin/python" - <<'PY'
from functools import reduce
from importlib.metadata import version
from operator import add

from langchain_core.messages import AIMessageChunk


def joined(*values: object) -> object:
    chunks = [AIMessageChunk(content="", response_metadata={"key": value}) for value in values]
    return reduce(add, chunks).response_metadata["key"]


stated = {
    (2, 2): 2,
    (2, 3): 5,
    (2, 2, 3): 5,
    (2, 3, 2): 7,
    ("stop", "stop"): "stopstop",
}
seen = {values: joined(*values) for values in stated}
print("langchain-core", version("langchain-core"))
for values, total in seen.items():
    print(values, "->", repr(total))
assert seen == stated, "CHANGED"
print("as stated: 2, 2, 3 gives 5 and 2, 3, 2 gives 7")
PY
