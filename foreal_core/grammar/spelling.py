"""Which tokens spell text and which only mark it, as llguidance is to see a tokenizer.

llguidance takes added tokens that are special, or whose name stands in angle brackets, for tokens
that no text spells: it refuses them where a grammar asks for text. Yet where the text is forced it
has the tokenizer encode it, which makes those very tokens of their names, and then allows nothing
else (findings/llguidance-forced-text-is-a-special-token.sh). So they get names here that no text
holds: text is spelled by other tokens, and a grammar names them by id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from typing import Any

# Private use: nobody assigns it.
_UNSPELLED = "\ue000{}\ue000"


def marking_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and names of the added tokens of a fast tokenizer of transformers that only mark text."""
    return {
        token: str(added)
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special or (str(added).startswith("<") and str(added).endswith(">"))
    }


def serialized_for_grammars(tokenizer: Any, marking: Mapping[int, str]) -> str:
    """A fast tokenizer's JSON in which no text spells the marking tokens.

    Args:
        tokenizer: of transformers.
        marking: see `marking_tokens`.
    """
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    whole = json.loads(backend.to_str())
    for added in whole["added_tokens"]:
        if added["id"] in marking:
            added["content"] = _UNSPELLED.format(added["id"])
            added["special"] = True
    vocabulary = whole["model"]["vocab"]
    # Some models hold them too; a list has (piece, score) in the order of ids.
    for token, name in marking.items():
        if isinstance(vocabulary, list):
            if token < len(vocabulary) and vocabulary[token][0] == name:
                vocabulary[token][0] = _UNSPELLED.format(token)
        elif vocabulary.get(name) == token:
            del vocabulary[name]
            vocabulary[_UNSPELLED.format(token)] = token
    return json.dumps(whole)
