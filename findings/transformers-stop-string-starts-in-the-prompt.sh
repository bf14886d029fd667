#!/usr/bin/env bash
# transformers 5.24.0: a stop string of `generate` may begin inside the prompt. The text ends after
# its first new token although nothing that was written holds the string.
#
# Guessed: stop strings are looked for in what is written.
# Matters to: prompts that end in the first half of a stop string, such as "User" and "User:".
#
# Installs torch. The model is random and tiny; no weights are downloaded.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'transformers==5.24.0' 'torch==2.13.0'
"$work/venv/bin/python" - <<'PY'
import string
from importlib.metadata import version

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = {letter: i for i, letter in enumerate(string.ascii_lowercase)}
inner = Tokenizer(models.BPE(vocab=letters, merges=[]))
inner.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=26, initializer_range=0.3, **sizes)).eval()
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0

prompt = "hello"
ids = tokenizer(prompt, return_tensors="pt").input_ids


def written(**options) -> str:
    out = model.generate(ids, max_new_tokens=8, do_sample=False, **options)
    return tokenizer.decode(out[0])[len(prompt) :]


free = written()
stop = prompt[-1] + free[0]  # half in the prompt, half written
cut = written(stop_strings=[stop], tokenizer=tokenizer)
print("transformers", version("transformers"))
print(f"prompt {prompt!r}, written freely {free!r}, with stop string {stop!r}: {cut!r}")
assert stop not in free, "choose another seed: the string must not occur in the written text"
assert cut == free[0], "CHANGED"
print("as stated: one letter was written, and the stop string is not in it")
PY
