#!/usr/bin/env bash
# llguidance 1.9.1: where a grammar forces a text that is also the name of an added token, the mask
# allows that token alone, and the matcher then refuses it.
#
# Guessed: the mask allows what the matcher takes; a text is spelled by tokens that spell text.
# Matters to: whoever holds a model with <tool_call> tokens (Qwen2.5, Qwen3) to such calls, or to a
# JSON constant that holds such a name.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'llguidance==1.9.1' 'tokenizers==0.22.1' numpy==2.2.6
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

print("llguidance", version("llguidance"))
letters = sorted(ByteLevel.alphabet())
tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), Decoder()
marks = ["<end>", "<mark>"]
tokenizer.add_tokens([AddedToken(mark, special=False) for mark in marks])
end, mark = map(tokenizer.token_to_id, marks)
known = LLTokenizer(tokenizer.to_str(), eos_token=end)

for grammar in ('start: "<mark>"', 'start: %json {"const": "<mark>"}', f"start: <[{mark}]>"):
    matcher = LLMatcher(known, grammar)
    while True:
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(mask, bitorder="little").nonzero()[0].tolist()
        if allowed == [mark]:
            break
        assert matcher.try_consume_tokens(allowed[:1]) == 1
    taken = matcher.try_consume_tokens([mark])
    print(f"{grammar}: allowed {[tokenizer.id_to_token(one) for one in allowed]}, taken {taken}")
    assert taken == (1 if "[" in grammar else 0), "CHANGED"
print("as stated: the only token that the mask allows is refused")
PY
