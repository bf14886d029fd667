"""A decoder that is played: it answers at once by a script and notes what it was asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from foreal_core.config import FoReaLConfig
from foreal_core.cost import Meter, ModelProfile, build_report
from foreal_core.demo import pair_paths
from foreal_core.errors import FoReaLError
from foreal_core.events import Generation

PROFILES = {
    "leader": ModelProfile("L", 4_000_000, 1_000, 64, 8_000_000),
    "draft": ModelProfile("D", 400_000, 1_000, 64, 800_000),
}


@dataclass(frozen=True)
class Riddle:
    """A task whose answer must be found in the response."""

    question: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]

    def is_correct(self, text: str) -> bool:
        return self.answer in text


RIDDLES = [Riddle(f"riddle {i}", f"<{i}>") for i in range(8)]


@functools.cache
def bundled_tokenizer() -> Any:
    """The bundled pair's, whose template and vocabulary know the marks of thinking."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pair_paths()[0])


class PlayedDecoder:
    """Stands in for FoReaLDecoder.

    Args:
        answer: question -> response; by default each riddle is solved.
        template_end: what the chat template ends a prompt with.
    """

    has_chat_template = True

    def __init__(
        self,
        answer: Callable[[str], str] = lambda q: f"<{q.split()[-1]}>",
        template_end: str = "",
    ) -> None:
        self.answer = answer
        self.tokenizer = bundled_tokenizer()
        self._end = self.tokenizer(template_end, add_special_tokens=False)["input_ids"]
        self._prompts: list[str] = []
        self.asked: list[tuple[str, FoReaLConfig]] = []
        self.models = {"leader": "L", "draft": "D"}
        self.profiles = PROFILES

    def demo(self, **options: Any) -> PlayedDecoder:
        return self

    def stats(self) -> dict[str, int]:
        return {"max_batch_size": 128}

    def encode(self, prompt: Any = None, *, messages: Any = None) -> list[int]:
        self._prompts.append(prompt if messages is None else messages[-1]["content"])
        return [len(self._prompts) - 1, *self._end]

    def submit(self, ids: list[int], config: Any = None) -> Future[Generation]:
        question = self._prompts[ids[0]]
        self.asked.append((question, config))
        future: Future[Generation] = Future()
        try:
            future.set_result(generation(self.answer(question), config))
        except FoReaLError as error:
            future.set_exception(error)
        return future

    def __enter__(self) -> PlayedDecoder:
        return self

    def __exit__(self, *ended: Any) -> None:
        pass


def generation(text: str, config: FoReaLConfig) -> Generation:
    """A response of one token per character, the first half by the leader."""
    size = len(text) or 1
    authors = ["leader" if i < (size + 1) // 2 else "draft" for i in range(size)]
    cost = build_report(
        profiles=PROFILES,
        meters={
            author: Meter(passes=size, shared_passes=size / 4, tokens=size, logits=size)
            for author in PROFILES
        },
        prompt_tokens=5,
        authors=authors,
        sentences=1,
        led_sentences=1,
        handoffs=1,
        seconds={"queued": 0.0, "first_token": 0.1, "total": 0.5},
        settings=config.to_dict(),
        prefill_chunk=512,
        servers={},
    )
    return Generation(
        text=text,
        token_ids=tuple(range(size)),
        authors=tuple(authors),
        segments=(),
        sentences=(),
        finish_reason="stop",
        end_reason="eos",
        stop_string=None,
        cost=cost,
        texts=tuple(text),
        hit_runs=(None,) * size,
    )
