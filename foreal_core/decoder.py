"""FoReaLDecoder: load a pair, generate, stream, sync and async."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias, overload

from foreal_core.backends.base import Backend
from foreal_core.backends.local.executor import LocalExecutor
from foreal_core.backends.local.runner import ModelRunner, longest_text
from foreal_core.backends.local.threads import give_back_threads
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.engine.callbacks import callbacks
from foreal_core.engine.engine import Engine
from foreal_core.engine.futures import GenerationFuture
from foreal_core.engine.own_thread import before_waiting
from foreal_core.engine.request import End, Finished, OnEnd, OnEvents, Request
from foreal_core.engine.spans import SpanEngine
from foreal_core.engine.streams import AsyncTokenStream, Push, TokenStream
from foreal_core.errors import ConfigError
from foreal_core.events import DRAFT, LEADER, Author, Generation
from foreal_core.loading.pair import end_of_sequence_ids, load_pair, model_name
from foreal_core.prompts import Batch, Messages, Prompt, PromptLike, Prompts, is_long
from foreal_core.text.pair_tokenizer import PairTokenizer

OnDone: TypeAlias = Callable[[Generation | BaseException], None]
Tools: TypeAlias = Sequence[Mapping[str, Any]]
TemplateKwargs: TypeAlias = Mapping[str, Any]

_DEFAULT_CONTEXT = 4096


class FoReaLDecoder:
    """Two causal language models of transformers that write one text.

    Thread-safe: any number of threads and event loops may call it at once; their requests share
    the models' passes. Also a context manager that closes it.

    On a CPU, weights are packed into a layout for fast kernels, where that pays, and held once:
    until the decoder is closed the models compute with the packed ones, whoever runs them, and
    their parameters have no memory; `state_dict` and `save_pretrained` bring them back. Adapters
    and hooks of later do not show.

    Args:
        leader: the large reasoning model.
        draft: the small model; it may be on another device.
        tokenizer: the leader's tokenizer; all ids that come out are ids of it.
        draft_tokenizer: the draft's, if it is another one; both must agree on ordinary ids.
        max_batch_size: requests that run side by side; the rest queue.
        max_context: tokens of prompt and completion together; by default what both models take.
        max_queue: requests that wait for a row at most; None for no bound. `generate` waits for a
            place, `submit` and streams raise QueueFullError.
        static_shapes: run short passes at few fixed shapes, on CUDA as captured graphs; None does
            so for each model that is on a CUDA device as a whole.
        compile: run those passes through torch.compile, which takes minutes when a shape is first
            met; needs static shapes.
        threads: CPU threads of a pass; torch's own number where None. Threads of the caller's that
            compute for the first time later take the number over, as torch has it.

    Raises:
        IncompatibleModelsError: the vocabularies give different meanings to the same ids.
        UnsupportedModelError: a model's cache cannot be rolled back, or its attention is of a kind
            that cannot be replaced.
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        leader: Any,
        draft: Any,
        tokenizer: Any,
        *,
        draft_tokenizer: Any = None,
        max_batch_size: int = 32,
        max_context: int | None = None,
        max_queue: int | None = None,
        static_shapes: bool | None = None,
        compile: bool = False,
        threads: int | None = None,
    ) -> None:
        _refuse_unless_loaded(leader, draft, tokenizer)
        if static_shapes is not None and not isinstance(static_shapes, bool):
            raise ConfigError(
                f"static_shapes={static_shapes!r} is not allowed: True, False or None."
            )
        context = _checked_context(max_context, leader, draft)
        _refuse_unless_count("max_batch_size", max_batch_size)
        if max_queue is not None:
            _refuse_unless_count("max_queue", max_queue)
        if threads is not None:
            _refuse_unless_count("threads", threads)
        runners: list[ModelRunner] = []
        try:
            for author, model in ((LEADER, leader), (DRAFT, draft)):
                runners.append(
                    ModelRunner(
                        model,
                        model_name(model, author),
                        max_rows=max_batch_size,
                        max_slots=context,
                        static=static_shapes,
                        compiled=compile,
                    )
                )
            leader_runner, draft_runner = runners
            pair_tokenizer = PairTokenizer(
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
        self._models: dict[Author, Any] = {LEADER: leader, DRAFT: draft}
        engine = Engine(
            LocalExecutor(
                {LEADER: leader_runner, DRAFT: draft_runner}, pair_tokenizer, threads=threads
            ),
            pair_tokenizer,
            max_batch_size=max_batch_size,
            max_context=context,
            max_queue=max_queue,
            check=os.environ.get("FOREAL_CHECK", "") not in ("", "0"),
        )
        self._adopt(engine, pair_tokenizer, leader_runner.vocab_size, max_queue)
        # Of the thread that loaded and packed the models; the engine computes in one of its own.
        give_back_threads()

    def _adopt(
        self,
        engine: Engine | SpanEngine,
        tokenizer: PairTokenizer,
        vocab_size: int,
        max_queue: int | None,
    ) -> None:
        """Takes an engine over, which closes with this decoder."""
        self._engine = engine
        self._pair_tokenizer = tokenizer
        self._prompts = Prompts(tokenizer, vocab_size=vocab_size, max_context=engine.max_context)
        self._submitting_waits = max_queue is not None
        weakref.finalize(self, engine.abandon)

    @classmethod
    def from_backend(
        cls,
        backend: Backend,
        tokenizer: Any,
        *,
        draft_tokenizer: Any = None,
        leader_vocab_size: int | None = None,
        draft_vocab_size: int | None = None,
        end_of_sequence: Collection[int] | None = None,
        max_batch_size: int = 32,
        max_queue: int | None = None,
    ) -> FoReaLDecoder:
        """A decoder whose models are a `Backend` of one's own, wherever they run.

        Policies, streams, stop strings, seeds and bills are those of two models in this process;
        `json_schema` and `call_schema` are refused, and nothing is proposed.

        Args:
            backend: writes spans of token ids; closed with the decoder.
            tokenizer, draft_tokenizer: see the class.
            leader_vocab_size, draft_vocab_size: ids that each model knows; by default those of the
                tokenizers.
            end_of_sequence: ids that end a text; by default the tokenizer's.
            max_batch_size, max_queue: see the class.
        """
        _refuse_unless_count("max_batch_size", max_batch_size)
        if max_queue is not None:
            _refuse_unless_count("max_queue", max_queue)
        vocab_size = leader_vocab_size or len(tokenizer)
        ends = {tokenizer.eos_token_id} if end_of_sequence is None else set(end_of_sequence)
        pair = PairTokenizer(
            tokenizer,
            draft_tokenizer,
            leader_vocab_size=vocab_size,
            draft_vocab_size=draft_vocab_size or len(draft_tokenizer or tokenizer),
            leader_eos=ends - {None},
            draft_eos=ends - {None},
        )
        self = cls.__new__(cls)
        self._models = {}
        engine = SpanEngine(
            backend, pair, vocab_size=vocab_size, max_batch_size=max_batch_size, max_queue=max_queue
        )
        self._adopt(engine, pair, vocab_size, max_queue)
        return self

    def __copy__(self) -> FoReaLDecoder:
        return self  # copies of what holds it share the one engine

    def __deepcopy__(self, memo: Any) -> FoReaLDecoder:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "a FoReaLDecoder cannot be pickled: it holds models and a thread. Send its model names "
            "and load the pair there."
        )

    @classmethod
    def from_pretrained(
        cls,
        leader: str,
        draft: str,
        *,
        device_map: Any = "auto",
        dtype: Any = "auto",
        max_batch_size: int = 32,
        max_context: int | None = None,
        max_queue: int | None = None,
        static_shapes: bool | None = None,
        compile: bool = False,
        threads: int | None = None,
        leader_kwargs: Mapping[str, Any] | None = None,
        draft_kwargs: Mapping[str, Any] | None = None,
        **hf_kwargs: Any,
    ) -> FoReaLDecoder:
        """Loads a pair by hub id or folder.

        Args:
            leader, draft: hub ids or local folders.
            device_map, dtype: as in transformers' `from_pretrained`, for both models.
            max_batch_size, max_context, max_queue, static_shapes, compile, threads: see the class.
            leader_kwargs, draft_kwargs: further `from_pretrained` arguments for one model
                (quantization_config, revision, device_map, ...).
            **hf_kwargs: further arguments for both.

        Raises:
            ModelLoadError: a model or tokenizer cannot be loaded; the message says which and why.
        """
        pair = load_pair(
            leader,
            draft,
            common={"device_map": device_map, "dtype": dtype, **hf_kwargs},
            leader_kwargs=leader_kwargs or {},
            draft_kwargs=draft_kwargs or {},
        )
        return cls(
            pair.leader,
            pair.draft,
            pair.tokenizer,
            draft_tokenizer=pair.draft_tokenizer,
            max_batch_size=max_batch_size,
            max_context=max_context,
            max_queue=max_queue,
            static_shapes=static_shapes,
            compile=compile,
            threads=threads,
        )

    @classmethod
    def demo(
        cls, *, draft: str = "reasoning", max_batch_size: int = 32, threads: int | None = None
    ) -> FoReaLDecoder:
        """The bundled pair: loads offline, in seconds, on a CPU.

        Args:
            draft: "reasoning", or "instruct" for the one that answers without thinking.
            max_batch_size, threads: see the class.
        """
        from foreal_core.demo import pair_paths

        leader_path, draft_path = pair_paths(draft)
        return cls.from_pretrained(
            str(leader_path),
            str(draft_path),
            dtype="float32",
            max_batch_size=max_batch_size,
            threads=threads,
        )

    # -- prompts ------------------------------------------------------------------------------

    def prepare(
        self,
        prompt: PromptLike | None = None,
        *,
        messages: Messages | None = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
    ) -> Prompt:
        """Encodes and checks one prompt or chat; every call takes the result in place of a prompt.

        Args:
            prompt: a text (raw, as in transformers) or token ids.
            messages: instead of a prompt: one chat, a list of {"role", "content"}; the tokenizer's
                chat template is applied.
            tools: JSON schemas of functions, shown by templates that know tools.
            chat_template_kwargs: what the template itself understands (`enable_thinking`,
                `documents`, ...).

        Raises:
            ConfigError: a wrong argument, an empty prompt.
            ContextOverflowError: the prompt leaves no room to write.
        """
        return self._prompts.prepare(
            prompt, messages=messages, tools=tools, chat_template_kwargs=chat_template_kwargs
        )

    def encode(
        self,
        prompt: PromptLike | None = None,
        *,
        messages: Messages | None = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
    ) -> list[int]:
        """The token ids of `prepare`."""
        return list(
            self.prepare(
                prompt, messages=messages, tools=tools, chat_template_kwargs=chat_template_kwargs
            ).ids
        )

    # -- generate -----------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompt: str | Prompt,
        config: FoReaLConfig | None = None,
        *,
        n: None = None,
        **overrides: Any,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Any] | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Sequence[Any] | None = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
        n: int | None = None,
        seeds: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Any: ...
    def generate(
        self,
        prompt: Any = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Any = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
        n: int | None = None,
        seeds: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Any:
        """Writes to the end and returns one Generation, or a list of them for a batch or `n`.

        Under one seed each text of a call has random numbers of its own: the first those of the
        same call for it alone, text i those of seed `stream_seed(seed, i)` (`foreal_core.
        randomness`). `cost.settings["seed"]` names each.

        Args:
            prompt: a text, token ids, a Prompt, or a list of such (a batch).
            config: the settings; the defaults where None.
            messages: instead of a prompt: one chat (a list of {"role", "content"}) or a batch of
                chats; the tokenizer's chat template is applied.
            tools, chat_template_kwargs: see `prepare`.
            n: texts of each prompt; the result is a list of them, for a batch a list of lists.
            seeds: one for each text instead of those of one seed: of every prompt its `n` texts
                one after the other.
            **overrides: single settings; they win over `config`.

        Raises:
            ConfigError: a wrong argument, an empty prompt.
            ContextOverflowError: a prompt leaves no room to write.
            OutOfMemoryError, NonFiniteLogitsError, EngineClosedError: the run failed. In a batch
                the first error is raised and the other requests are stopped.
            FoReaLError: called in the engine's own thread, where it would wait for ever.
        """
        settings = _settings(config, overrides)
        before_waiting()
        batch = self._prompts.prepare_all(
            prompt,
            messages,
            settings,
            n=n,
            seeds=seeds,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
        )
        requests, futures = self._submit_all(batch)
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in futures if future.done() and future.exception()]
            results = [future.result().generation for future in failed or futures]
        finally:
            for request in requests:
                request.cancel()
        return batch.shaped(results)

    async def agenerate(
        self,
        prompt: Any = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Any = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
        n: int | None = None,
        seeds: Sequence[int] | None = None,
        **overrides: Any,
    ) -> Any:
        """`generate` for an event loop; cancelling the task stops the work within one step."""
        settings = _settings(config, overrides)
        before_waiting()
        prepare = partial(
            self._prompts.prepare_all,
            prompt,
            messages,
            settings,
            n=n,
            seeds=seeds,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
        )
        if is_long(prompt, messages, tools, chat_template_kwargs):
            batch = await asyncio.to_thread(prepare)
        else:
            batch = prepare()
        if self._submit_blocks(settings):
            submitting = asyncio.ensure_future(asyncio.to_thread(self._submit_all, batch))
            try:
                requests, futures = await asyncio.shield(submitting)
            except asyncio.CancelledError:
                submitting.add_done_callback(_cancel_submitted)
                raise
        else:
            requests, futures = self._submit_all(batch)
        try:
            ends = await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        finally:
            for request in requests:
                request.cancel()
        results = [end.generation for end in ends]
        return batch.shaped(results)

    def submit(
        self,
        prompt: PromptLike | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
        on_done: OnDone | None = None,
        **overrides: Any,
    ) -> Future[Generation]:
        """`generate` for one prompt or chat that returns at once; `concurrent.futures` waits for
        several of them. Cancelling the future stops its work within one step.

        Raises at once what is wrong with the arguments; the future raises what goes wrong later.

        Args:
            on_done: as in `stream`; a cancelled future's work ends there too.
        """
        settings = _settings(config, overrides)
        ids = self.prepare(
            prompt, messages=messages, tools=tools, chat_template_kwargs=chat_template_kwargs
        )
        future = GenerationFuture()

        # Users' callbacks, the future's own included, run apart from the engine.
        request = self._submit(ids, settings, None, _resolves(future, on_done))
        # The decoder lives as long as its futures.
        future.add_done_callback(partial(_stop, self, request))
        return future

    # -- stream -------------------------------------------------------------------------------

    def stream(
        self,
        prompt: PromptLike | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
        on_done: OnDone | None = None,
        **overrides: Any,
    ) -> TokenStream:
        """Token events of one prompt or chat as they are written; arguments as in `generate`.

        Raises at once what is wrong with the arguments, while iterating what goes wrong later.

        Args:
            on_done: called once with the Generation or the error that ends the request, right
                before the stream ends, also where nobody reads or closes it. Runs in a thread of
                its own; what it raises is logged.
        """
        settings = _settings(config, overrides)
        ids = self.prepare(
            prompt, messages=messages, tools=tools, chat_template_kwargs=chat_template_kwargs
        )
        return TokenStream(lambda push: self._submit(ids, settings, push, _ends(on_done, push)))

    def astream(
        self,
        prompt: PromptLike | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        tools: Tools | None = None,
        chat_template_kwargs: TemplateKwargs | None = None,
        on_done: OnDone | None = None,
        **overrides: Any,
    ) -> AsyncTokenStream:
        """`stream` for an event loop; the request starts at the first `await`."""
        settings = _settings(config, overrides)

        def start(push: Push) -> Request[Any]:
            ids = self.prepare(
                prompt, messages=messages, tools=tools, chat_template_kwargs=chat_template_kwargs
            )
            return self._submit(ids, settings, push, _ends(on_done, push))

        long = is_long(prompt, messages, tools, chat_template_kwargs)
        blocks = long or settings.constrained
        return AsyncTokenStream(start, start_blocks=blocks)

    # -- the rest -----------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The leader's tokenizer."""
        return self._pair_tokenizer.tokenizer

    @property
    def pair_tokenizer(self) -> PairTokenizer:
        """Both tokenizers, and the ids that the two vocabularies share."""
        return self._pair_tokenizer

    @property
    def transformers_models(self) -> dict[Author, Any]:
        """The two models as transformers loaded them; they may be run beside the decoder. Empty
        where they run elsewhere."""
        return dict(self._models)

    @property
    def has_chat_template(self) -> bool:
        """Whether `messages=` works."""
        return self._pair_tokenizer.has_chat_template

    @property
    def max_context(self) -> int:
        """Tokens of prompt and completion together, at most."""
        return self._engine.max_context

    @property
    def models(self) -> dict[str, str]:
        """Names of "leader" and "draft"."""
        return {author: profile.name for author, profile in self._engine.profiles.items()}

    @property
    def profiles(self) -> dict[Author, ModelProfile]:
        """Sizes of "leader" and "draft" that decide what a token and a pass cost."""
        return dict(self._engine.profiles)

    @property
    def static_shapes(self) -> bool:
        """Whether short passes of a model run at fixed shapes."""
        return self._engine.static_shapes

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine.closed

    def stats(self) -> dict[str, int]:
        """Requests that run ("active"), that wait ("queued"), "free_rows", "max_batch_size"."""
        return self._engine.stats()

    def close(self) -> None:
        """Ends running requests with EngineClosedError and gives memory back."""
        self._engine.close()

    def __enter__(self) -> FoReaLDecoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def check_integrity(self) -> None:
        """Checks that an idle decoder holds nothing of requests that are over: all rows are free,
        and the models' caches and graphs are as they were made.

        Raises:
            FoReaLError: requests run, or something was left over; it says what.
        """
        self._engine.check_integrity()

    def _submit(
        self, prompt: Prompt, settings: FoReaLConfig, on_events: OnEvents | None, on_end: OnEnd
    ) -> Request[Any]:
        return self._engine.submit(prompt.ids, settings, on_events, on_end)

    def _submit_all(self, batch: Batch) -> tuple[list[Request[Any]], list[Future[Finished]]]:
        """Submits all, waiting for places in the queue. The futures are for those who wait, not for
        callbacks: they are resolved in the engine's thread."""
        futures: list[Future[Finished]] = [Future() for _ in batch.requests]
        requests: list[Request[Any]] = []
        try:
            for (prompt, settings), future in zip(batch.requests, futures, strict=True):
                end = partial(_resolve, future)
                requests.append(self._engine.submit(prompt.ids, settings, None, end, wait=True))
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return requests, futures

    def _submit_blocks(self, settings: FoReaLConfig) -> bool:
        """Whether submitting may hold an event loop up: for a place in the queue, or since the
        first schema walks the whole vocabulary."""
        return settings.constrained or self._submitting_waits


def _settings(config: FoReaLConfig | None, overrides: Mapping[str, Any]) -> FoReaLConfig:
    if config is not None and not isinstance(config, FoReaLConfig):
        raise ConfigError(
            f"config of type {type(config).__name__} is not allowed: a FoReaLConfig or None."
        )
    return (config or FoReaLConfig()).with_overrides(**overrides)


def _refuse_unless_loaded(leader: Any, draft: Any, tokenizer: Any) -> None:
    for author, model in ((LEADER, leader), (DRAFT, draft)):
        if not hasattr(model, "config"):
            raise ConfigError(
                f"the {author} is {model!r}: a model of transformers is needed. "
                "FoReaLDecoder.from_pretrained loads models by hub id or folder."
            )
    if not callable(tokenizer):
        raise ConfigError(f"the tokenizer is {tokenizer!r}: the leader's own one is needed.")


def _checked_context(max_context: int | None, leader: Any, draft: Any) -> int:
    takes = min(longest_text(model) or _DEFAULT_CONTEXT for model in (leader, draft))
    if max_context is None:
        return takes
    if isinstance(max_context, bool) or not isinstance(max_context, int) or max_context < 2:
        raise ConfigError(f"max_context={max_context!r} is not allowed: an integer >= 2.")
    if max_context > takes:
        raise ConfigError(
            f"max_context={max_context} is not allowed: the pair takes at most {takes} positions."
        )
    return max_context


def _refuse_unless_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} is not allowed: an integer >= 1.")


def _stop(decoder: FoReaLDecoder, request: Request[Any], future: Future[Generation]) -> None:
    request.cancel()


def _cancel_submitted(
    submitting: asyncio.Future[tuple[list[Request[Any]], list[Future[Finished]]]],
) -> None:
    """Cancels requests that a thread submitted after their task was cancelled."""
    if not submitting.cancelled() and submitting.exception() is None:
        for request in submitting.result()[0]:
            request.cancel()


def _told(end: End) -> Generation | BaseException:
    return end.generation if isinstance(end, Finished) else end


def _ends(on_done: OnDone | None, push: Push) -> OnEnd:
    """Tells a user of a request's end and then its stream: apart from the engine, whose own part is
    the push alone."""
    if on_done is None:
        return push

    def tell(end: End) -> None:
        try:
            on_done(_told(end))
        finally:
            push(end)

    return lambda end: callbacks.run(partial(tell, end))


def _resolves(future: Future[Generation], on_done: OnDone | None) -> OnEnd:
    """The same for a future, whose own callbacks are a user's as well."""

    def tell(end: End) -> None:
        told = _told(end)
        try:
            if on_done is not None:
                on_done(told)
        finally:
            _resolve(future, told)

    return lambda end: callbacks.run(partial(tell, end))


def _resolve(future: Future[Any], end: Any) -> None:
    """Hands a request's end to a future, unless that is over or its waiter gave up."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(end, BaseException):
        future.set_exception(end)
    else:
        future.set_result(end)
