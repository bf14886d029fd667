"""Whole answers, as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreal_core.chat.calls import ToolCall
from foreal_core.cost import CostReport
from foreal_core.events import Generation
from foreal_core.serve.asks import Ask
from foreal_core.serve.replies import ChatReply

Record = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What every answer and chunk of one request begins with."""

    id: str
    created: int
    model: str

    def fields(self, kind: str) -> Record:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def chat_answer(
    head: Head, ask: Ask, replies: Sequence[ChatReply], generations: Sequence[Generation]
) -> Record:
    """A chat's answer.

    Args:
        replies: fresh ones, one for each generation.
    """
    choices = []
    for index, (reply, generation) in enumerate(zip(replies, generations, strict=True)):
        choices.append(_chat_choice(index, reply, generation))
    reasoning = sum(reply.reasoning_tokens for reply in replies)
    return _answer(head.fields("chat.completion"), ask, choices, generations, reasoning)


def _chat_choice(index: int, reply: ChatReply, generation: Generation) -> Record:
    texts: dict[str, str] = {}
    deltas = reply.feed(zip(generation.texts, generation.token_ids, strict=True))
    ending = reply.end(generation)
    for delta in [*deltas, *ending.deltas]:
        texts[delta.field] = texts.get(delta.field, "") + delta.text
    content = texts.pop("content", "")
    message: Record = {"role": "assistant", "content": content, **texts}
    if ending.calls:
        message["content"] = content or None
        message["tool_calls"] = [call_record(call) for call in ending.calls]
    return {
        "index": index,
        "message": message,
        "logprobs": None,
        "finish_reason": ending.finish_reason,
    }


def text_answer(head: Head, ask: Ask, generations: Sequence[Generation]) -> Record:
    """A completion's answer."""
    choices = [
        {
            "index": index,
            "text": generation.text,
            "logprobs": None,
            "finish_reason": generation.finish_reason,
        }
        for index, generation in enumerate(generations)
    ]
    return _answer(head.fields("text_completion"), ask, choices, generations, 0)


def call_record(call: ToolCall) -> Record:
    """A call in OpenAI's JSON."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def usage(
    costs: Sequence[CostReport], prompt_tokens: int, reasoning_tokens: int
) -> Mapping[str, Any]:
    """OpenAI's usage, with the tokens of each author beside those of the thinking."""
    completion = sum(cost.completion_tokens for cost in costs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens,
            "leader_tokens": sum(cost.leader_tokens for cost in costs),
            "draft_tokens": sum(cost.draft_tokens for cost in costs),
        },
    }


def bill(generation: Generation) -> Record:
    """The cost record of one choice."""
    return {**generation.cost.to_dict(), "models": public_names(generation.cost.models)}


def public_names(models: Mapping[str, str]) -> dict[str, str]:
    """The models' names; of a model that was loaded from a folder only the folder's own."""
    return {
        author: Path(name).name if Path(name).is_absolute() else name
        for author, name in models.items()
    }


def cost_record(ask: Ask, generation: Generation) -> Record:
    """The cost record of one choice, with its tokens where they are asked for."""
    record = bill(generation)
    if ask.tokens:
        sentences = [
            number
            for number, sentence in enumerate(generation.sentences)
            for _ in range(sentence.start, sentence.end)
        ]
        rows = zip(generation.texts, generation.authors, sentences, strict=False)
        record["tokens"] = [token_record(*row) for row in rows]
    return record


def token_record(text: str, author: str, sentence: int) -> Record:
    """Who wrote a token, and in which sentence."""
    return {"text": text, "author": author, "sentence": sentence}


def _answer(
    fields: Record,
    ask: Ask,
    choices: list[Record],
    generations: Sequence[Generation],
    reasoning_tokens: int,
) -> Record:
    costs = [generation.cost for generation in generations]
    # A prompt counts once, however many choices go on from it.
    prompts = {
        choice.prompt: cost.prompt_tokens for choice, cost in zip(ask.choices, costs, strict=True)
    }
    answer = {
        **fields,
        "choices": choices,
        "usage": usage(costs, sum(prompts.values()), reasoning_tokens),
    }
    records = [cost_record(ask, generation) for generation in generations]
    if len(records) == 1:
        return {**answer, "foreal": records[0]}
    for choice, record in zip(choices, records, strict=True):
        choice["foreal"] = record
    return answer
