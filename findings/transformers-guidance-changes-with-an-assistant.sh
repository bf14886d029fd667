#!/usr/bin/env bash
# transformers 5.24.0: with guidance_scale, greedy assisted generation (assistant_model=) writes
# another text than greedy generation without an assistant, even where the assistant is the model
# itself. Without guidance_scale both are the same.
#
# Guessed: an assistant makes `generate` faster and leaves a greedy text as it is.
# Matters to: whoever compares methods, or turns assistance on for speed.
#
# Installs torch. The models are random and tiny; no weights are downloaded.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'transformers==5.24.0' 'torch==2.13.0'
"$work/venv/bin/python" - <<'PY'
import copy
from importlib.metadata import version

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(0)
torch.set_num_threads(1)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.3, **sizes)).eval()
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0
assistant = copy.deepcopy(model)
prompt = torch.tensor([[5, 6, 7, 8]])


def written(**options) -> list[int]:
    return model.generate(prompt, max_new_tokens=12, do_sample=False, **options)[0, 4:].tolist()


plain, plain_assisted = written(), written(assistant_model=assistant)
guided = written(guidance_scale=3.0)
guided_assisted = written(guidance_scale=3.0, assistant_model=assistant)
print("transformers", version("transformers"))
print("greedy:                    ", plain)
print("greedy, assisted:          ", plain_assisted)
print("greedy, guided:            ", guided)
print("greedy, guided and assisted:", guided_assisted)
assert plain == plain_assisted, "CHANGED: assistance alone moves the text"
assert guided != plain, "choose another seed: guidance must move the text"
assert guided != guided_assisted, "CHANGED"
print("as stated: the assistant changes the guided text")
PY
