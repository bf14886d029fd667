"""What the prefix cache spares: the turns of a chat over a long context, with it and without it in
turn, and many questions over one document: `python -m foreal_core.benchmark.prefixes`."""

from __future__ import annotations

from statistics import median
from typing import Any

from foreal_core.benchmark.command import pair_parser, print_record
from foreal_core.benchmark.subject import PROBLEM_SEED, Subject
from foreal_core.decoder import FoReaLDecoder
from foreal_core.events import DRAFT, LEADER, Generation
from foreal_core.records import provenance

_TURNS, _QUESTIONS = 6, 16


def measure_prefixes(subject: Subject, *, context: int, tokens: int) -> dict[str, Any]:
    """The record of a chat whose first message has about `context` tokens and whose answers have
    at most `tokens`, and of questions over the same document, JSON-safe.

    Raises:
        ContextOverflowError: the chat is longer than the pair takes.
    """
    document = _document(subject, context)
    settings: dict[str, Any] = {
        "max_new_tokens": tokens,
        "lead_probability": 1.0,  # the leader reads the prompt first, which takes longest
        "seed": PROBLEM_SEED,
    }
    pair = subject.leader, subject.draft, subject.tokenizer
    with (
        FoReaLDecoder(*pair, draft_tokenizer=subject.draft_tokenizer, prefix_cache=False) as plain,
        FoReaLDecoder(*pair, draft_tokenizer=subject.draft_tokenizer) as remembering,
    ):
        for decoder in (plain, remembering):  # whatever is made once is made here
            decoder.generate(messages=subject.task(0).messages, **settings)
        turns = _chat(subject, document, plain, remembering, settings)
        questions = _questions(subject, document, remembering, settings)
    later = turns[1:]
    return {
        "kind": "prefixes",
        "pair": subject.name,
        "dtype": str(subject.leader.dtype).removeprefix("torch."),
        "settings": settings,
        "models": provenance.models(
            {author: subject.profile(author).name for author in (LEADER, DRAFT)}
        ),
        "turns": turns,
        "first_token_ratio_of_later_turns": {
            "largest": max(turn["first_token_ratio"] for turn in later),
            "median": median(turn["first_token_ratio"] for turn in later),
        },
        "questions": questions,
        "machine": provenance.machine(),
        "versions": provenance.versions(),
    }


def _document(subject: Subject, context: int) -> str:
    """Questions one after another, of about so many tokens."""
    parts: list[str] = []
    length = number = 0
    while length < context:
        number += 1
        parts.append(str(subject.task(number).messages[-1]["content"]))
        length += len(subject.tokenizer(parts[-1])["input_ids"])
    return "\n".join(parts)


def _chat(
    subject: Subject,
    document: str,
    plain: FoReaLDecoder,
    remembering: FoReaLDecoder,
    settings: dict[str, Any],
) -> list[dict[str, Any]]:
    """One entry for each turn; each turn is asked of both decoders, one after the other."""
    messages: list[dict[str, Any]] = []
    turns = []
    for turn in range(_TURNS):
        question = str(subject.task(turn).messages[-1]["content"])
        said = f"{document}\n{question}" if turn == 0 else question
        messages.append({"role": "user", "content": said})
        without = plain.generate(messages=messages, **settings)
        cached = remembering.generate(messages=messages, **settings)
        messages.append({"role": "assistant", "content": without.text})
        turns.append(
            {
                "prompt_tokens": without.cost.prompt_tokens,
                "without": _reading(without),
                "with": _reading(cached),
                "first_token_ratio": cached.cost.seconds["first_token"]
                / without.cost.seconds["first_token"],
                "same_text": cached.token_ids == without.token_ids,
            }
        )
    return turns


def _reading(written: Generation) -> dict[str, Any]:
    cost = written.cost
    return {
        "first_token_seconds": cost.seconds["first_token"],
        "prefill_tokens": {one: cost.forward_tokens[one]["prefill"] for one in (LEADER, DRAFT)},
        "cached_tokens": dict(cost.cached_tokens),
    }


def _questions(
    subject: Subject, document: str, decoder: FoReaLDecoder, settings: dict[str, Any]
) -> dict[str, Any]:
    """Questions that are asked together over a document that nobody has read."""
    document = f"Read this.\n{document}"
    chats = [
        [{"role": "user", "content": f"{document}\nWhat does sentence {number} say?"}]
        for number in range(_QUESTIONS)
    ]
    written = decoder.generate(messages=chats, **settings)
    size = len(subject.tokenizer(document)["input_ids"])
    read = {
        author: sum(one.cost.forward_tokens[author]["prefill"] for one in written)
        for author in (LEADER, DRAFT)
    }
    return {
        "questions": _QUESTIONS,
        "document_tokens": size,
        "prompt_tokens": sum(one.cost.prompt_tokens for one in written),
        "prefill_tokens": read,
        "prefill_documents": {author: read[author] / size for author in read},
    }


def main() -> None:
    """Prints one JSON object."""
    parser = pair_parser(__doc__)
    parser.add_argument("--context", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=16)
    print_record(
        parser,
        lambda subject, asked: measure_prefixes(
            subject, context=asked.context, tokens=asked.tokens
        ),
    )


if __name__ == "__main__":
    main()
