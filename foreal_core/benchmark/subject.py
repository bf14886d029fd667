"""What is measured: a pair of models and the prompts that it is asked."""

from __future__ import annotations

import copy
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from foreal_core.backends.local.profile import profile_model
from foreal_core.chat.messages import user_message
from foreal_core.cost import ModelProfile
from foreal_core.decoder import FoReaLDecoder
from foreal_core.demo import pair_paths, problems
from foreal_core.demo.real_size import PRESETS, real_size_pair
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.loading.gguf import runs_in_llama_cpp
from foreal_core.loading.pair import load_pair, model_name
from foreal_core.loading.placement import cache_bytes
from foreal_core.randomness import problem_seed
from foreal_core.records import files

BUNDLED = "bundled"
PROBLEM_SEED = 2024
_PROBLEMS = 256  # more than any selection asks in one go


class Task(Protocol):
    """A question as a chat. What has an answer can be graded."""

    @property
    def messages(self) -> list[dict[str, Any]]: ...
    def is_correct(self, text: str) -> bool | None:
        """Whether a response is right; None where nobody knows."""
        ...


@dataclass(frozen=True)
class Question:
    """A prompt of the user's, without an answer."""

    messages: list[dict[str, Any]]

    def is_correct(self, text: str) -> bool | None:
        """Nobody knows."""
        return None


@dataclass(frozen=True)
class Subject:
    """A loaded pair with its questions.

    Attributes:
        name: "bundled", a preset's name, or both ids.
        sources: where the weights of "leader" and "draft" come from.
        filler_id: a token that makes contexts long and changes nothing, if there is one.
    """

    name: str
    sources: Mapping[Author, str]
    leader: Any
    draft: Any
    tokenizer: Any
    draft_tokenizer: Any
    tasks: Sequence[Task]
    filler_id: int | None = None

    def model(self, author: Author) -> Any:
        """The leader or the draft."""
        return self.leader if author == LEADER else self.draft

    def profile(self, author: Author) -> ModelProfile:
        """What its passes cost."""
        return profile_model(self.model(author), model_name(self.model(author), author))

    def apart(self) -> Subject:
        """The same pair for transformers' own ways of writing. On a CPU it has models of its own:
        those of a decoder run through the decoder's packed weights, whoever calls them."""
        if self.leader.device.type != "cpu":
            return self
        return replace(self, leader=copy.deepcopy(self.leader), draft=copy.deepcopy(self.draft))

    def cache_bytes(self, author: Author) -> int:
        """Keys and values of one token in all layers."""
        model = self.model(author)
        return cache_bytes(model.config, model.dtype.itemsize)

    def sizes(self) -> dict[Author, dict[str, Any]]:
        """Each model's name and the bytes that its passes read, JSON-safe."""
        profiles = {author: self.profile(author) for author in (LEADER, DRAFT)}
        return {
            author: {
                "name": profile.name,
                "weight_bytes": profile.weight_bytes,
                "cache_bytes_per_token": self.cache_bytes(author),
            }
            for author, profile in profiles.items()
        }

    def task(self, number: int) -> Task:
        """Task `number`, from 0; after the last they start again."""
        return self.tasks[number % len(self.tasks)]

    def seed(self, number: int) -> int:
        """The seed of a task's answers."""
        return problem_seed(PROBLEM_SEED, number)

    def digest(self) -> str:
        """16 hex digits that change with any task."""
        return files.digest([task.messages for task in self.tasks])

    def prompt(self, number: int, context: int = 0) -> list[int]:
        """A task's token ids, filled up in front to `context` tokens.

        A filler changes nothing; a pair without one reads other questions first, which it may mind.
        """
        ids = self._encoded(self.task(number))
        missing = max(context - len(ids), 0)
        if self.filler_id is not None:
            return [self.filler_id] * missing + ids
        others = (self._encoded(self.task(other)) for other in itertools.count(number + 1))
        return [*itertools.islice(itertools.chain.from_iterable(others), missing), *ids]

    def answer_tokens(self, count: int, limit: int) -> dict[Author, float]:
        """How long an answer of each model alone gets on average, as far as it can be foretold:
        pairs of real size write what the bundled pair writes, others are taken to use the limit."""
        if self.name != BUNDLED and self.name not in PRESETS:
            return {LEADER: limit, DRAFT: limit}
        chats = [self.task(number).messages for number in range(count)]
        lengths: dict[Author, float] = {}
        # Fixed shapes would take longer to capture than these few answers to write.
        with FoReaLDecoder.demo(prefix_cache=False, static_shapes=False) as decoder:
            for author in (LEADER, DRAFT):
                written = decoder.generate(messages=chats, policy=author, max_new_tokens=limit)
                lengths[author] = statistics.mean(len(one.token_ids) for one in written)
        return lengths

    def _encoded(self, task: Task) -> list[int]:
        if self.tokenizer.chat_template:
            ids: list[int] = self.tokenizer.apply_chat_template(
                task.messages, add_generation_prompt=True, return_dict=False
            )
            return ids
        return list(self.tokenizer(task.messages[-1]["content"])["input_ids"])


def load_subject(
    pair: str = BUNDLED,
    *,
    leader: str | None = None,
    draft: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    domain: str = "ledger",
    prompts: Path | None = None,
) -> Subject:
    """Loads what is to be measured.

    Args:
        pair: "bundled" or a preset of `real_size`; not read where ids are given.
        leader, draft: folders or hub ids of the user's own pair.
        device: a torch device; the accelerator where there is one.
        dtype: float32 for the bundled pair and bfloat16 for others by default.
        domain: of the bundled problems.
        prompts: a file of the user's, one JSON object per line with "prompt" or "messages".

    Raises:
        ConfigError: unknown pair, device or number type, only one of both ids, a malformed file, a
            model that runs in llama.cpp.
        ModelLoadError: a model cannot be loaded.
    """
    where = device or str(torch.accelerator.current_accelerator() or "cpu")
    try:
        torch.device(where)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: cpu, cuda, cuda:1, ...") from error
    tasks: Sequence[Task] = (
        problems(domain, PROBLEM_SEED, _PROBLEMS) if prompts is None else _read_prompts(prompts)
    )
    if (leader is None) != (draft is None):
        raise ConfigError("leader and draft go together: give both, or a pair's name.")
    own = leader is not None and draft is not None
    paths = pair_paths()
    sources = {LEADER: leader or str(paths[0]), DRAFT: draft or str(paths[1])}
    for name in sources.values():
        if runs_in_llama_cpp(name, {}, None):
            raise ConfigError(
                f"{name} runs in llama.cpp, and only passes of torch are measured here: "
                "`python -m foreal_core.benchmark.gguf` measures GGUF files, and "
                "`foreal_core.benchmark.mixed` pairs of both."
            )
    if own or pair == BUNDLED:
        usual = "bfloat16" if own else "float32"
        loaded = load_pair(
            sources[LEADER],
            sources[DRAFT],
            common={"device_map": where, "dtype": dtype or usual},
            leader_kwargs={},
            draft_kwargs={},
        )
        name = f"{leader} + {draft}" if own else BUNDLED
        return Subject(name, sources, **vars(loaded), tasks=tasks)
    if pair not in PRESETS:
        raise ConfigError(
            f"unknown pair {pair!r}: {BUNDLED}, {', '.join(PRESETS)}, or ids of your own."
        )
    number_type = getattr(torch, dtype or "bfloat16", None)
    if not isinstance(number_type, torch.dtype):
        raise ConfigError(f"unknown dtype {dtype!r}: bfloat16, float16 or float32.")
    large = real_size_pair(pair, device=where, dtype=number_type)
    return Subject(
        pair,
        sources,
        large.leader,
        large.draft,
        large.tokenizer,
        None,
        tasks,
        filler_id=large.filler_id,
    )


def _read_prompts(path: Path) -> list[Task]:
    tasks: list[Task] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            messages = entry.get("messages") or user_message(entry["prompt"])
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a JSON object with "
                '"prompt" (a text) or "messages" (a chat).'
            ) from error
        tasks.append(Question(messages))
    if not tasks:
        raise ConfigError(f"{path} has no prompts.")
    return tasks
