"""Every method of writing with a pair, behind one interface: prompts in, token ids and times
out."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from foreal_core.benchmark.subject import Subject
from foreal_core.config import FoReaLConfig
from foreal_core.decoder import FoReaLDecoder
from foreal_core.events import DRAFT, LEADER, Author, Generation
from foreal_core.loading.pair import end_of_sequence_ids

Prompt = list[int]


@dataclass(frozen=True)
class Run:
    """The result of one call over several prompts.

    Attributes:
        seconds: wall clock of the whole call.
        first_token: seconds to each prompt's first token, from the call on.
        token_ids: of each completion, an end-of-sequence token included.
        leader_tokens: how many of them the leader wrote.
        passes: distinct forward passes by model; rows that share one count once.
        row_passes: the same, a pass over B rows counted B times.
    """

    seconds: float
    first_token: list[float]
    token_ids: list[list[int]]
    leader_tokens: int
    passes: dict[Author, float]
    row_passes: dict[Author, float]


class Method(Protocol):
    """One method of writing."""

    def run(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Run:
        """Continues all prompts together, greedily; `seeds` are the gates' seeds."""
        ...


@dataclass(frozen=True)
class Ours:
    """Our engine under one policy."""

    subject: Subject
    decoder: FoReaLDecoder
    settings: dict[str, Any]

    def run(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Run:
        """See `Method`."""
        config = FoReaLConfig(max_new_tokens=max_new_tokens, **self.settings)
        start = time.perf_counter()
        written = generate_with_seeds(self.decoder, prompts, seeds, config)
        seconds = time.perf_counter() - start
        costs = [one.cost for one in written]
        return Run(
            seconds=seconds,
            first_token=[cost.seconds["first_token"] for cost in costs],
            token_ids=[list(one.token_ids) for one in written],
            leader_tokens=sum(cost.leader_tokens for cost in costs),
            passes={
                # Each request is charged its share of the passes that it was in.
                author: sum(cost.weight_bytes[author] or 0 for cost in costs)
                / self.subject.profile(author).weight_bytes
                for author in (LEADER, DRAFT)
            },
            row_passes={
                author: sum(cost.forward_passes[author] for cost in costs)
                for author in (LEADER, DRAFT)
            },
        )


@dataclass(frozen=True)
class Transformers:
    """transformers' `generate`, with its stock attention, plain or assisted.

    Attributes:
        author: who writes the text.
        proposed: tokens that the assistant proposes per pass; "default" leaves the schedule and
            the confidence threshold to transformers; "lookup" proposes five out of the text
            (`prompt_lookup_num_tokens`); None writes without proposals.
    """

    subject: Subject
    author: Author
    proposed: int | str | None = None

    def run(self, prompts: Sequence[Prompt], seeds: Sequence[int], max_new_tokens: int) -> Run:
        """See `Method`."""
        model = self.subject.model(self.author)
        end_ids = sorted(end_of_sequence_ids(model, self.subject.tokenizer))
        width = max(map(len, prompts))
        ids = torch.tensor([[end_ids[0]] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        ids, mask = ids.to(model.device), mask.to(model.device)
        watch = _Watch()
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            repetition_penalty=1.0,  # else the model's own settings would bring theirs
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
        )
        with (
            _stock_attention(self.subject),
            _counted(self.subject) as calls,
            self._assistant() as assistant,
        ):
            start = time.perf_counter()
            written = model.generate(
                ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([watch]),
                **assistant,
            )
            rows = written[:, width:].tolist()
            seconds = time.perf_counter() - start
        token_ids = [_until_end(row, end_ids) for row in rows]
        written_in_all = sum(map(len, token_ids))
        return Run(
            seconds=seconds,
            first_token=[(watch.first or start) - start] * len(prompts),
            token_ids=token_ids,
            leader_tokens=written_in_all if self.author == LEADER else 0,
            passes=dict(calls),
            row_passes={author: count * len(prompts) for author, count in calls.items()},
        )

    @contextlib.contextmanager
    def _assistant(self) -> Iterator[dict[str, Any]]:
        if self.proposed is None or self.proposed == "lookup":
            yield {} if self.proposed is None else {"prompt_lookup_num_tokens": 5}
            return
        draft = self.subject.draft
        own = draft.generation_config
        # The schedule is read from the assistant's own settings.
        draft.generation_config = copy.deepcopy(own)
        if self.proposed != "default":
            draft.generation_config.num_assistant_tokens = self.proposed
            draft.generation_config.num_assistant_tokens_schedule = "constant"
            draft.generation_config.assistant_confidence_threshold = 0.0
        tokenizers = {}
        sizes = [
            model.config.get_text_config().vocab_size for model in (self.subject.leader, draft)
        ]
        if sizes[0] != sizes[1]:
            # Also where only the padding differs, transformers goes by text and not by ids.
            own_tokenizer = self.subject.tokenizer
            tokenizers = {
                "tokenizer": own_tokenizer,
                "assistant_tokenizer": self.subject.draft_tokenizer or own_tokenizer,
            }
        try:
            yield {"assistant_model": draft, **tokenizers}
        finally:
            draft.generation_config = own


def generate_with_seeds(
    decoder: FoReaLDecoder, prompts: Sequence[Prompt], seeds: Sequence[int], config: FoReaLConfig
) -> list[Generation]:
    """Continues all prompts together, each with its own seed. Under one seed all gates would
    agree, and a pass would serve more rows than it does for users."""
    futures = [
        decoder.submit(prompt, config, seed=seed)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    try:
        return [future.result() for future in futures]
    finally:
        for (
            future
        ) in futures:  # where one failed, the others must not run into the next measurement
            future.cancel()


class _Watch(StoppingCriteria):
    """A stopping criterion that never stops; records the time of its first call, after the first
    pass."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.first is None:
            input_ids[:, -1].tolist()  # on a GPU the pass may still run
            self.first = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def _stock_attention(subject: Subject) -> Iterator[None]:
    """Gives both models transformers' own attention for the block; the engine must be idle."""
    models = (subject.leader, subject.draft)
    ours = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        for model, name in zip(models, ours, strict=True):
            model.set_attn_implementation(name)


@contextlib.contextmanager
def _counted(subject: Subject) -> Iterator[dict[Author, float]]:
    """Forward passes of both models, counted while they run."""
    calls: dict[Author, float] = {LEADER: 0, DRAFT: 0}

    def counter(author: Author) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[author] += 1

        return count

    hooks = [
        subject.model(author).register_forward_pre_hook(counter(author))
        for author in (LEADER, DRAFT)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _until_end(row: list[int], end_ids: Sequence[int]) -> list[int]:
    """The ids without the padding behind the end of the text."""
    end = next((index + 1 for index, token in enumerate(row) if token in end_ids), len(row))
    return row[:end]


_OURS: dict[str, dict[str, Any]] = {
    "leader": {"policy": "leader"},
    "leader-plain": {"policy": "leader", "speculate": False},
    "draft": {"policy": "draft"},
    "draft-plain": {"policy": "draft", "speculate": False},
    "speculative-3": {"policy": "speculative", "draft_length": 3},
    "speculative-5": {"policy": "speculative", "draft_length": 5},
    "speculative": {"policy": "speculative"},
    "review-0.3": {"policy": "review", "policy_options": {"tolerance": 0.3}},
    "review-0.6": {"policy": "review", "policy_options": {"tolerance": 0.6}},
    "entropy-0.4": {"policy": "entropy", "policy_options": {"share": 0.4}},
    "foreal-p1.0": {"lead_probability": 1.0},
    "foreal-p0.8": {"lead_probability": 0.8},
    "foreal-p0.6": {"lead_probability": 0.6},
    "foreal-p0.6-even": {"policy": "even", "lead_probability": 0.6},
    "foreal-p0.5-even": {"policy": "even", "lead_probability": 0.5},
    "foreal-p1.0-plain": {"lead_probability": 1.0, "speculate": False},
    "foreal-p0.6-plain": {"lead_probability": 0.6, "speculate": False},
}
_THEIRS: dict[str, tuple[Author, int | str | None]] = {
    "transformers-leader": (LEADER, None),
    "transformers-draft": (DRAFT, None),
    "assisted-3": (LEADER, 3),
    "assisted-5": (LEADER, 5),
    "assisted-10": (LEADER, 10),
    "assisted-default": (LEADER, "default"),
    "assisted-lookup": (LEADER, "lookup"),
}
METHODS = (*_THEIRS, *_OURS)

# Greedy, each of these groups writes one text, token for token, whatever it proposes.
SAME_TEXT: tuple[tuple[str, ...], ...] = (
    (
        "leader",
        "leader-plain",
        "speculative",
        "speculative-3",
        "speculative-5",
        *(n for n in _THEIRS if _THEIRS[n][0] == LEADER),
    ),
    ("draft", "draft-plain", "transformers-draft"),
    ("foreal-p1.0", "foreal-p1.0-plain"),
    ("foreal-p0.6", "foreal-p0.6-plain"),
)


def is_ours(name: str) -> bool:
    """Whether a method runs on the engine."""
    return name in _OURS


def takes_batches(name: str) -> bool:
    """transformers' assisted generation writes one text at a time."""
    return not name.startswith("assisted")


def build_methods(
    names: Sequence[str],
    subject: Subject,
    decoder: FoReaLDecoder,
    theirs: Subject | None = None,
) -> dict[str, Method]:
    """The methods of these names over one loaded pair; transformers' own run on `theirs`."""
    methods: dict[str, Method] = {}
    for name in names:
        if name in _OURS:
            methods[name] = Ours(subject, decoder, _OURS[name])
        else:
            methods[name] = Transformers(theirs or subject, *_THEIRS[name])
    return methods
