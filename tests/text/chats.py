"""Chats in the terms of OpenAI's JSON, and what the templates of families show of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from families import FAMILIES
from transformers import AutoTokenizer

from foreal_core.demo import pair_paths
from foreal_core.text.conversation import render_conversation
from foreal_core.text.pair_tokenizer import PairTokenizer

WITH_CALLS = sorted(name for name, family in FAMILIES.items() if family.form is not None)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks up.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "clock")
]


@cache
def tokenizer_with(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(pair_paths()[0])
    tokenizer.chat_template = template
    return tokenizer


def rendered(
    template: str, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> str:
    tokenizer = tokenizer_with(template)

    def render(chat: Sequence[dict[str, Any]], prelude: str) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(chat),
                tools=tools,
                chat_template=prelude + template,
                tokenize=False,
                add_generation_prompt=True,
            )
        )

    return render_conversation(tokenizer, messages, tools, render)


def shown_by(name: str, messages: Sequence[dict[str, Any]]) -> str:
    family = FAMILIES[name]
    return rendered(family.template, messages, TOOLS if family.tools else None)


def calling(*calls: tuple[str, Any], text: str | None = None, **more: Any) -> dict[str, Any]:
    made = [
        {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": given}}
        for place, (name, given) in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, "tool_calls": made, **more}


def result(text: str, call: int = 0) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"call_{call}"}


USER = {"role": "user", "content": "Rain where?"}
ANSWER = {"role": "assistant", "content": "It rains."}


def pair_tokenizer(template: str) -> PairTokenizer:
    size = len(tokenizer_with(template))
    return PairTokenizer(
        tokenizer_with(template),
        leader_vocab_size=size,
        draft_vocab_size=size,
        leader_eos=[1399],
        draft_eos=[1399],
    )
