"""Whether a value that is there already follows a JSON schema, as held answers do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from foreal_core.extras import extra_module
from foreal_core.grammar.json_features import described


def follows(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a grammar of this schema lets the value be written: properties in their order, and
    everything that it holds answers to.

    Args:
        value: JSON-safe.
        schema: one that answers can be held to.
    """
    llguidance = extra_module("llguidance", "json", "a JSON schema")
    tokenizer = llguidance.LLTokenizer("byte")
    grammars = (
        llguidance.LLMatcher.grammar_from_json_schema(described(schema, bounded=bounded))
        for bounded in (True, False)  # llguidance knows no bounds beside some other keywords
    )
    grammar = next(one for one in grammars if not llguidance.LLMatcher.validate_grammar(one))
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    written = json.dumps(value, ensure_ascii=False).encode()
    return bool(
        matcher.try_consume_tokens(list(written)) == len(written) and matcher.is_accepting()
    )
