"""The Generation and the bill of a finished request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from foreal_core.config import FoReaLConfig
from foreal_core.cost import CostReport, ModelProfile, Usage, build_report
from foreal_core.events import DRAFT, LEADER, Author, Generation
from foreal_core.request.model_state import PREFILL_CHUNK, ModelState
from foreal_core.request.transcript import Transcript
from foreal_core.request.turns import Turns
from foreal_core.text.thinking_marks import thinking_after


def build_generation(turns: Turns, cost: CostReport) -> Generation:
    """The finished text with its provenance."""
    text = turns.transcript
    assert text.finish_reason is not None and text.end_reason is not None
    runs, first = turns.alignment.runs, text.prompt_length
    return Generation(
        text="".join(text.texts),
        token_ids=tuple(text.tokens[first:]),
        authors=tuple(text.authors),
        segments=tuple(text.segments),
        sentences=tuple(text.sentences),
        finish_reason=text.finish_reason,
        end_reason=text.end_reason,
        stop_string=text.stop_string,
        cost=cost,
        texts=tuple(text.texts),
        hit_runs=tuple(runs.get(position) for position in range(first, len(text.tokens))),
        logprobs=tuple(text.logprobs) if text.with_logprobs else None,
        warnings=(*_warnings(text), *_lost(cost)),
    )


def _warnings(text: Transcript) -> tuple[str, ...]:
    """Why the answer is empty, if it is."""
    first = text.prompt_length
    state = thinking_after(text.tokenizer.tokenizer, text.tokens[:first])
    for token, shown in zip(text.tokens[first:], text.texts, strict=True):
        if any(part == "answer" and said.strip() for part, said in state.feed(shown, token)):
            return ()
    thought = state.part == "thinking"
    if any(part == "answer" and said.strip() for part, said in state.flush()):
        return ()
    where = " in its thinking" if thought else ""
    why = {
        "stop_string": f"the stop string {text.stop_string!r} came{where or ' first'}",
        "length": f"the limit of {len(text.authors)} tokens came{where or ' first'}: raise "
        "max_new_tokens or max_context",
        "eos": f"the model ended the text{where or ' at once'}",
        "stop_id": f"one of stop_token_ids came{where or ' first'}",
        "grammar": "the grammar had to end the text before anything was said",
        "cancelled": f"the request was cancelled{where or ' before anything was said'}",
    }
    assert text.end_reason is not None
    return (f"the answer is empty: {why[text.end_reason]}.",)


def _lost(cost: CostReport) -> Iterator[str]:
    """Whose server was lost."""
    for author, usage in cost.servers.items():
        if usage["lost"]:
            other = DRAFT if author == LEADER else LEADER
            yield f"the {author}'s server was lost: the {other} wrote the rest alone."


def build_cost(
    text: Transcript,
    states: Mapping[Author, ModelState],
    config: FoReaLConfig,
    seed: int,
    profiles: Mapping[Author, ModelProfile],
    servers: Mapping[Author, Usage] | None = None,
) -> CostReport:
    """What a request cost so far; `servers` is what servers say of it."""
    return build_report(
        profiles=profiles,
        meters={author: state.meter for author, state in states.items()},
        prompt_tokens=text.prompt_length,
        authors=text.authors,
        sentences=len(text.sentences),
        led_sentences=sum(sentence.led for sentence in text.sentences),
        handoffs=text.handoffs,
        seconds=text.clock.seconds(),
        settings={**config.recorded(), "seed": seed},
        prefill_chunk=PREFILL_CHUNK,
        servers=servers or {},
    )
