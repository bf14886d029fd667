"""Whole answers, as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreal_core.chat.calls import ToolCall
from foreal_core.chat.logprobs import chat_logprobs, events_of, text_logprobs
from foreal_core.cost import CostReport
from foreal_core.events import Generation, TokenEvent
from foreal_core.serve.asks import Ask
from foreal_core.serve.replies import ChatReply
from foreal_core.text.pair_tokenizer import PairTokenizer

Record = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What all parts of the answer to one request need.

    Attributes:
        id, created, model: what each answer and chunk begins with.
        ask: what is asked for.
        tokenizer: the pair's.
    """

    id: str
    created: int
    model: str
    ask: Ask
    tokenizer: PairTokenizer

    def head(self, kind: str) -> Record:
        """The first fields of an answer or chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def chat_answer(
    context: Context, replies: Sequence[ChatReply], generations: Sequence[Generation]
) -> Record:
    """A chat's answer.

    Args:
        replies: fresh ones, one for each generation.
    """
    choices = [
        {"index": index, **_chat_choice(context, reply, generation)}
        for index, (reply, generation) in enumerate(zip(replies, generations, strict=True))
    ]
    reasoning = sum(reply.reasoning_tokens for reply in replies)
    return _answer(context, "chat.completion", choices, generations, reasoning)


def _chat_choice(context: Context, reply: ChatReply, generation: Generation) -> Record:
    texts: dict[str, str] = {}
    deltas = reply.feed(events_of(generation))
    written = reply.take_written()
    ending = reply.end(generation)
    for delta in [*deltas, *ending.deltas]:
        texts[delta.field] = texts.get(delta.field, "") + delta.text
    content = texts.pop("content", "")
    message: Record = {"role": "assistant", "content": content, **texts}
    if ending.calls:
        message["content"] = content or None
        message["tool_calls"] = [call_record(call) for call in ending.calls]
    return {
        "message": message,
        "logprobs": None if written is None else chat_logprobs(written, context.tokenizer),
        "finish_reason": ending.finish_reason,
    }


def text_answer(context: Context, generations: Sequence[Generation]) -> Record:
    """A completion's answer."""
    wanted = context.ask.choices[0].settings.logprobs
    choices = [
        {
            "index": index,
            "text": generation.text,
            "logprobs": text_logprobs(events_of(generation), context.tokenizer, 0)
            if wanted
            else None,
            "finish_reason": generation.finish_reason,
        }
        for index, generation in enumerate(generations)
    ]
    return _answer(context, "text_completion", choices, generations, 0)


def call_record(call: ToolCall) -> Record:
    """A call in OpenAI's JSON."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def usage(
    costs: Sequence[CostReport], prompts: Sequence[object], reasoning_tokens: int
) -> Mapping[str, Any]:
    """OpenAI's usage, with the tokens of each author beside those of the thinking.

    Args:
        prompts: what each choice goes on from. One counts once, however many choices do, and is
            cached as far as all of them found it so.
    """
    read: dict[object, tuple[int, int]] = {}
    for prompt, cost in zip(prompts, costs, strict=True):
        _, cached = read.get(prompt, (0, cost.prompt_tokens))
        read[prompt] = cost.prompt_tokens, min(cached, cost.cached_prompt_tokens)
    prompt_tokens, cached_tokens = map(sum, zip(*read.values(), strict=True))
    completion = sum(cost.completion_tokens for cost in costs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens,
            "leader_tokens": sum(cost.leader_tokens for cost in costs),
            "draft_tokens": sum(cost.draft_tokens for cost in costs),
        },
    }


def bill(generation: Generation) -> Record:
    """Our field of an answer: the cost record of one choice, and what a caller should know."""
    record = {**generation.cost.to_dict(), "models": public_names(generation.cost.models)}
    return {**record, "warnings": list(generation.warnings)} if generation.warnings else record


def public_names(models: Mapping[str, str]) -> dict[str, str]:
    """The models' names; of a model that was loaded from a folder only the folder's own."""
    return {
        author: Path(name).name if Path(name).is_absolute() else name
        for author, name in models.items()
    }


def token_records(events: Iterable[TokenEvent]) -> list[Record]:
    """Who wrote each token, and in which sentence."""
    return [
        {"text": event.text, "author": event.author, "sentence": event.sentence} for event in events
    ]


def _answer(
    context: Context,
    kind: str,
    choices: list[Record],
    generations: Sequence[Generation],
    reasoning_tokens: int,
) -> Record:
    costs = [generation.cost for generation in generations]
    prompts = [choice.prompt for choice in context.ask.choices]
    answer = {
        **context.head(kind),
        "choices": choices,
        "usage": usage(costs, prompts, reasoning_tokens),
    }
    records = [bill(generation) for generation in generations]
    if context.ask.tokens:
        for record, generation in zip(records, generations, strict=True):
            record["tokens"] = token_records(events_of(generation))
    if len(records) == 1:
        return {**answer, "foreal": records[0]}
    for choice, record in zip(choices, records, strict=True):
        choice["foreal"] = record
    return answer
