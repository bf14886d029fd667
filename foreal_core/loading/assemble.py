"""Models, or a backend, and tokenizers become an engine."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from foreal_core.backends.base import Backend
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.llama_cpp.runner import LlamaRunner
from foreal_core.backends.local.executor import LocalExecutor, Runner
from foreal_core.backends.local.prefix_cache import PrefixCache
from foreal_core.backends.local.prefixes import Prefixes
from foreal_core.backends.local.runner import ModelRunner
from foreal_core.backends.local.support import longest_text
from foreal_core.backends.local.threads import give_back_threads
from foreal_core.engine.engine import Engine
from foreal_core.engine.spans import SpanEngine
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.loading.gpu_memory import context_that_fits
from foreal_core.loading.pair import end_of_sequence_ids, model_name
from foreal_core.loading.recommended import recommended_sampling
from foreal_core.numbers import is_integer
from foreal_core.text.pair_tokenizer import PairTokenizer

_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Assembled:
    """An engine with its pair's tokenizer, the ids that the leader knows, and the sampling settings
    that it recommends."""

    engine: Engine | SpanEngine
    tokenizer: PairTokenizer
    vocab_size: int
    recommended: Mapping[str, float] = field(default_factory=dict)


def assemble_models(
    leader: Any,
    draft: Any,
    tokenizer: Any,
    *,
    draft_tokenizer: Any,
    max_batch_size: int,
    max_context: int | None,
    max_queue: int | None,
    static_shapes: bool | None,
    compile: bool,
    threads: int | None,
    gpu_memory_utilization: float,
    prefix_cache: bool,
) -> Assembled:
    """An engine over two models in this process; arguments and errors are `FoReaLDecoder`'s."""
    _refuse_unless_loaded(leader, draft, tokenizer)
    if static_shapes is not None and not isinstance(static_shapes, bool):
        raise ConfigError(f"static_shapes={static_shapes!r} is not allowed: True, False or None.")
    if not isinstance(prefix_cache, bool):
        raise ConfigError(f"prefix_cache={prefix_cache!r} is not allowed: True or False.")
    rows = count_of("max_batch_size", max_batch_size)
    max_queue = count_or_none("max_queue", max_queue)
    threads = count_or_none("threads", threads)
    context = context_that_fits(
        _checked_context(max_context, leader, draft),
        [model for model in (leader, draft) if not isinstance(model, LlamaModel)],
        rows=rows,
        promised=max_context is not None,
        utilization=gpu_memory_utilization,
    )
    runners: list[Runner] = []
    try:
        for author, model in ((LEADER, leader), (DRAFT, draft)):
            if isinstance(model, LlamaModel):
                _refuse_shapes(author, static_shapes, compile)
                runners.append(
                    LlamaRunner(
                        model,
                        max_rows=rows,
                        max_slots=context,
                        threads=threads,
                        prefix_cache=prefix_cache,
                    )
                )
                continue
            runners.append(
                ModelRunner(
                    model,
                    model_name(model, author),
                    max_rows=rows,
                    max_slots=context,
                    static=static_shapes,
                    compiled=compile,
                )
            )
        leader_runner, draft_runner = runners
        pair = PairTokenizer(
            tokenizer,
            draft_tokenizer,
            leader_vocab_size=leader_runner.vocab_size,
            draft_vocab_size=draft_runner.vocab_size,
            leader_eos=end_of_sequence_ids(leader, tokenizer),
            draft_eos=end_of_sequence_ids(draft, draft_tokenizer or tokenizer),
        )
    except BaseException:
        for runner in runners:
            runner.restore()
        raise
    by_author: dict[Author, Runner] = {LEADER: leader_runner, DRAFT: draft_runner}
    prefixes = {
        author: found
        for author, runner in by_author.items()
        if prefix_cache and (found := _prefixes(runner)) is not None
    }
    engine = Engine(
        LocalExecutor(by_author, pair, threads=threads, prefixes=prefixes),
        pair,
        max_batch_size=rows,
        max_context=context,
        max_queue=max_queue,
        check=os.environ.get("FOREAL_CHECK", "") not in ("", "0"),
    )
    # Of the thread that loaded and packed the models; the engine computes in one of its own.
    give_back_threads()
    return Assembled(engine, pair, leader_runner.vocab_size, recommended_sampling(leader))


def _prefixes(runner: Runner) -> Prefixes | None:
    """Where requests of a model start from what others have read."""
    if isinstance(runner, LlamaRunner):
        return runner.prefixes
    if isinstance(runner, ModelRunner) and not runner.recurrent:
        return PrefixCache(runner.cache, pass_tokens=runner.pass_tokens)
    return None


def assemble_backend(
    backend: Backend,
    tokenizer: Any,
    *,
    draft_tokenizer: Any,
    leader_vocab_size: int | None,
    draft_vocab_size: int | None,
    end_of_sequence: Collection[int] | None,
    max_batch_size: int,
    max_queue: int | None,
) -> Assembled:
    """An engine over a backend; arguments are those of `FoReaLDecoder.from_backend`."""
    vocab_size = count_or_none("leader_vocab_size", leader_vocab_size) or len(tokenizer)
    draft_size = count_or_none("draft_vocab_size", draft_vocab_size)
    ends = {tokenizer.eos_token_id} if end_of_sequence is None else set(end_of_sequence)
    pair = PairTokenizer(
        tokenizer,
        draft_tokenizer,
        leader_vocab_size=vocab_size,
        draft_vocab_size=draft_size or len(draft_tokenizer or tokenizer),
        leader_eos=ends - {None},
        draft_eos=ends - {None},
    )
    engine = SpanEngine(
        backend,
        pair,
        max_batch_size=count_of("max_batch_size", max_batch_size),
        max_queue=count_or_none("max_queue", max_queue),
    )
    return Assembled(engine, pair, vocab_size)


def _refuse_unless_loaded(leader: Any, draft: Any, tokenizer: Any) -> None:
    for author, model in ((LEADER, leader), (DRAFT, draft)):
        if not hasattr(model, "config") and not isinstance(model, LlamaModel):
            raise ConfigError(
                f"the {author} is {model!r}: a model of transformers is needed. "
                "FoReaLDecoder.from_pretrained loads models by hub id or folder."
            )
    if not callable(tokenizer):
        raise ConfigError(f"the tokenizer is {tokenizer!r}: the leader's own one is needed.")


def _checked_context(max_context: int | None, leader: Any, draft: Any) -> int:
    takes = min(_longest_text(model) for model in (leader, draft))
    if max_context is None:
        return takes
    if not is_integer(max_context) or max_context < 2:
        raise ConfigError(f"max_context={max_context!r} is not allowed: an integer >= 2.")
    if max_context > takes:
        raise ConfigError(
            f"max_context={max_context} is not allowed: the pair takes at most {takes} positions."
        )
    return int(max_context)


def _longest_text(model: Any) -> int:
    if isinstance(model, LlamaModel):
        return model.context_length
    return longest_text(model) or _DEFAULT_CONTEXT


def _refuse_shapes(author: str, static_shapes: bool | None, compiled: bool) -> None:
    given = {"static_shapes": static_shapes, "compile": compiled}
    if asked := [f"{name}=True" for name, value in given.items() if value]:
        raise ConfigError(
            f"{' and '.join(asked)}: only models of transformers have such passes, and the "
            f"{author} runs in llama.cpp. Leave it out."
        )


def count_of(name: str, value: Any) -> int:
    """A number >= 1; raises ConfigError for what is none, by name."""
    if not is_integer(value) or value < 1:
        raise ConfigError(f"{name}={value!r} is not allowed: an integer >= 1.")
    return int(value)


def count_or_none(name: str, value: Any) -> int | None:
    """The same where None is allowed."""
    return None if value is None else count_of(name, value)
