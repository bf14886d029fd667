#!/usr/bin/env bash
# tokenizers 0.23.3: a DecodeStream that is given the ids of a prompt which ends inside a character
# returns the text of the whole prompt with the first new character.
#
# Guessed: the new character alone, as with a prompt that ends between two characters.
# Matters to: servers and engines that continue token ids which another model wrote, since a span
# may end after any byte of an emoji or of a CJK character.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'tokenizers==0.23.3'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

# One token a byte, as byte-level BPE has for characters that it never merged.
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()

text = "How do you feel? \N{SLIGHTLY SMILING FACE}!"
ids = tokenizer.encode(text).ids
assert tokenizer.decode(ids) == text
emoji = len("How do you feel? ")


def pieces(prompt_length: int) -> list[str | None]:
    stream = DecodeStream(ids=ids[:prompt_length])
    return [stream.step(tokenizer, id_) for id_ in ids[prompt_length:]]


between, inside = pieces(emoji), pieces(emoji + 2)
print("tokenizers", version("tokenizers"))
print("prompt ends before the emoji:      ", between)
print("prompt ends two bytes into the emoji:", inside)
assert between == [None, None, None, "\N{SLIGHTLY SMILING FACE}", "!"], "CHANGED"
assert inside == [None, "How do you feel? \N{SLIGHTLY SMILING FACE}", "!"], "CHANGED"
print("as stated: the second stream repeats the whole prompt")
PY
