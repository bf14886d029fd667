#!/usr/bin/env bash
# langchain-core 1.8.3: a streamed tool call whose JSON breaks off in the middle of a number or a
# string adds up to a valid call with the cut value, no trace of the cut in it.
#
# Guessed: an entry in invalid_tool_calls, as json.loads refuses the text.
# Matters to: whoever runs tools on streamed calls; the token limit may cut a call anywhere.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'langchain-core==1.8.3'
"$work/venv/bin/python" - <<'PY'
import json
from functools import reduce
from importlib.metadata import version
from operator import add

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk

pieces = ['{"to": "Kim", "am', 'ount": 12']  # the model was about to write 12500}
chunks = [
    AIMessageChunk(
        content="",
        tool_call_chunks=[
            tool_call_chunk(name=None if i else "pay", args=piece, id=None if i else "1", index=0)
        ],
    )
    for i, piece in enumerate(pieces)
]
message = reduce(add, chunks)
print("langchain-core", version("langchain-core"))
print("streamed arguments: ", "".join(pieces))
print("tool_calls:         ", message.tool_calls)
print("invalid_tool_calls: ", message.invalid_tool_calls)
try:
    json.loads("".join(pieces))
except json.JSONDecodeError as error:
    print("json.loads:         ", error)
else:
    raise AssertionError("the pieces were meant to be broken JSON")
[call] = message.tool_calls
assert call["args"] == {"to": "Kim", "amount": 12}, "CHANGED"
assert not message.invalid_tool_calls, "CHANGED"
print("as stated: pay(to='Kim', amount=12) is a valid call")
PY
