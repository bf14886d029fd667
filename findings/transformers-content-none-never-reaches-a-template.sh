#!/usr/bin/env bash
# transformers 5.24.0: apply_chat_template drops the keys of a message whose value is None, so that a
# template that looks for `content is none` (DeepSeek-R1's distilled models, for tool calls) never
# sees it; with None it does what it does without content.
#
# Guessed: the template sees the message as it was given, None as none.
# Matters to: whoever sends such a model the history of an agent.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'transformers==5.24.0' 'jinja2==3.1.6'
"$work/venv/bin/python" - 2>/dev/null <<'PY'
from importlib.metadata import version

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

template = (
    "{% for message in messages %}{% if message['content'] is none %}"
    "<call>{{ message['tool_calls'][0]['function']['name'] }}</call>"
    "{% else %}<text>{{ message['content'] }}</text>{% endif %}{% endfor %}"
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), chat_template=template)
call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
message = {"role": "assistant", "content": None, "tool_calls": [call]}
shown = tokenizer.apply_chat_template([message], tokenize=False)
print("transformers", version("transformers"))
print("template:", template)
print("message: ", message)
print("shown:   ", shown)
assert shown == "<text></text>", "CHANGED"
print("as stated: content None was missing, and the call with it")
PY
