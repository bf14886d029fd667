"""FoReaLDecoder: load a pair, generate, stream, sync and async."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias, overload

from foreal_core.backends.local.runner import ModelRunner, longest_text
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.engine.engine import Engine, Request
from foreal_core.engine.streams import AsyncTokenStream, Push, TokenStream
from foreal_core.errors import ConfigError, ContextOverflowError
from foreal_core.events import DRAFT, LEADER, Author, Generation, TokenEvent
from foreal_core.loading.pair import end_of_sequence_ids, load_pair, model_name
from foreal_core.text.tokenizer import PairTokenizer

Prompt: TypeAlias = str | Sequence[int]
Messages: TypeAlias = Sequence[Mapping[str, Any]]
OnDone: TypeAlias = Callable[[Generation | BaseException], None]

_logger = logging.getLogger(__name__)
_DEFAULT_CONTEXT = 4096
# Encoding more text than this may hold an event loop up for longer than a few milliseconds.
_LONG_PROMPT = 16_384


class FoReaLDecoder:
    """Two causal language models of transformers that write one text.

    Thread-safe: any number of threads and event loops may call it at once; their requests share
    the models' passes. Also a context manager that closes it.

    On a CPU, models in half precision get a second copy of their weights in a layout for fast
    kernels, where memory allows; changes to a model's weights, adapters or hooks after this do not
    show there.

    Args:
        leader: the large reasoning model.
        draft: the small model; it may be on another device.
        tokenizer: the leader's tokenizer; all ids that come out are ids of it.
        draft_tokenizer: the draft's, if it is another one; both must agree on ordinary ids.
        max_batch_size: requests that run side by side; the rest queue.
        max_context: tokens of prompt and completion together; by default what both models take.
        static_shapes: run short passes at few fixed shapes, on CUDA as recorded graphs; None does
            so for each model that is on a CUDA device as a whole.
        compile: run those passes through torch.compile, which takes minutes when a shape is first
            met; needs static shapes.

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
        static_shapes: bool | None = None,
        compile: bool = False,
    ) -> None:
        _refuse_unless_loaded(leader, draft, tokenizer)
        if static_shapes is not None and not isinstance(static_shapes, bool):
            raise ConfigError(
                f"static_shapes={static_shapes!r} is not allowed: True, False or None."
            )
        context = _checked_context(max_context, leader, draft)
        if (
            isinstance(max_batch_size, bool)
            or not isinstance(max_batch_size, int)
            or max_batch_size < 1
        ):
            raise ConfigError(f"max_batch_size={max_batch_size!r} is not allowed: an integer >= 1.")
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
            self._pair_tokenizer = PairTokenizer(
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
        self._vocab_size = leader_runner.vocab_size
        self._models: dict[Author, Any] = {LEADER: leader, DRAFT: draft}
        self._engine = Engine(
            leader_runner,
            draft_runner,
            self._pair_tokenizer,
            max_batch_size=max_batch_size,
            max_context=context,
        )
        weakref.finalize(self, self._engine.abandon)

    def __deepcopy__(self, memo: Any) -> FoReaLDecoder:
        return self  # copies of what holds it share the one engine

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
        static_shapes: bool | None = None,
        compile: bool = False,
        leader_kwargs: Mapping[str, Any] | None = None,
        draft_kwargs: Mapping[str, Any] | None = None,
        **hf_kwargs: Any,
    ) -> FoReaLDecoder:
        """Loads a pair by hub id or folder.

        Args:
            leader, draft: hub ids or local folders.
            device_map, dtype: as in transformers' `from_pretrained`, for both models.
            max_batch_size, max_context, static_shapes, compile: see the class.
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
            static_shapes=static_shapes,
            compile=compile,
        )

    @classmethod
    def demo(cls, *, draft: str = "reasoning", max_batch_size: int = 32) -> FoReaLDecoder:
        """The bundled pair: loads offline, in seconds, on a CPU.

        Args:
            draft: "reasoning", or "instruct" for the one that answers without thinking.
            max_batch_size: see the class.
        """
        from foreal_core.demo import pair_paths

        leader_path, draft_path = pair_paths(draft)
        return cls.from_pretrained(
            str(leader_path), str(draft_path), dtype="float32", max_batch_size=max_batch_size
        )

    # -- generate -----------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str, config: FoReaLConfig | None = None, **overrides: Any
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Any] | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Sequence[Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **overrides: Any,
    ) -> Any: ...
    def generate(
        self,
        prompt: Any = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Any = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **overrides: Any,
    ) -> Any:
        """Writes to the end and returns one Generation, or a list of them for a batch.

        Args:
            prompt: a text, token ids, or a list of texts and token-id lists (a batch).
            config: the settings; the defaults where None.
            messages: instead of a prompt: one chat (a list of {"role", "content"}) or a batch of
                chats; the tokenizer's chat template is applied.
            tools: JSON schemas of functions, shown by templates that know tools.
            **overrides: single settings; they win over `config`.

        Raises:
            ConfigError: a wrong argument, an empty prompt.
            ContextOverflowError: a prompt leaves no room to write.
            OutOfMemoryError, NonFiniteLogitsError, EngineClosedError: the run failed. In a batch
                the first error is raised and the other requests are stopped.
        """
        settings = _settings(config, overrides)
        batch, prompts = self._encode(prompt, messages, tools)
        requests, futures = self._submit_all(prompts, settings)
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in futures if future.done() and future.exception()]
            results = [future.result() for future in failed or futures]
        finally:
            for request in requests:
                request.cancel()
        return results if batch else results[0]

    def submit(
        self,
        prompt: Prompt | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        on_done: OnDone | None = None,
        **overrides: Any,
    ) -> Future[Generation]:
        """`generate` for one prompt or chat that returns at once; `concurrent.futures` waits for
        several of them. Cancelling the future stops its work within one step.

        Raises at once what is wrong with the arguments; the future raises what goes wrong later.

        Args:
            on_done: as in `stream`; a cancelled future's work ends there too.
        """
        ids = self.encode(prompt, messages=messages, tools=tools)
        future: Future[Generation] = Future()
        end = _and_then(on_done, _resolver(future))
        request = self._engine.submit(ids, _settings(config, overrides), _ignore, end)
        # The decoder lives as long as its futures.
        future.add_done_callback(partial(_stop, self, request))
        return future

    async def agenerate(
        self,
        prompt: Any = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Any = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **overrides: Any,
    ) -> Any:
        """`generate` for an event loop; cancelling the task stops the work within one step."""
        settings = _settings(config, overrides)
        if _is_long(prompt, messages):
            batch, prompts = await asyncio.to_thread(self._encode, prompt, messages, tools)
        else:
            batch, prompts = self._encode(prompt, messages, tools)
        if settings.constrained:
            # The first schema walks the whole vocabulary, which can take seconds.
            submitting = asyncio.ensure_future(
                asyncio.to_thread(self._submit_all, prompts, settings)
            )
            try:
                requests, futures = await asyncio.shield(submitting)
            except asyncio.CancelledError:
                submitting.add_done_callback(_cancel_submitted)
                raise
        else:
            requests, futures = self._submit_all(prompts, settings)
        try:
            results = await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        finally:
            for request in requests:
                request.cancel()
        return results if batch else results[0]

    # -- stream -------------------------------------------------------------------------------

    def stream(
        self,
        prompt: Prompt | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        on_done: OnDone | None = None,
        **overrides: Any,
    ) -> TokenStream:
        """Token events of one prompt or chat as they are written; arguments as in `generate`.

        Raises at once what is wrong with the arguments, while iterating what goes wrong later.

        Args:
            on_done: called once with the Generation or the error that ends the request, right
                before the stream ends, also where nobody reads or closes it. Runs in the engine's
                thread: it must return at once; what it raises is logged.
        """
        ids = self.encode(prompt, messages=messages, tools=tools)
        settings = _settings(config, overrides)
        return TokenStream(lambda push: self._submit(ids, settings, push, on_done))

    def astream(
        self,
        prompt: Prompt | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        on_done: OnDone | None = None,
        **overrides: Any,
    ) -> AsyncTokenStream:
        """`stream` for an event loop; the request starts at the first `await`."""
        settings = _settings(config, overrides)

        def start(push: Push) -> Request:
            ids = self.encode(prompt, messages=messages, tools=tools)
            return self._submit(ids, settings, push, on_done)

        blocks = _is_long(prompt, messages) or settings.constrained
        return AsyncTokenStream(start, start_blocks=blocks)

    # -- the rest -----------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The leader's tokenizer."""
        return self._pair_tokenizer.tokenizer

    @property
    def pair_tokenizer(self) -> PairTokenizer:
        """What the two vocabularies share."""
        return self._pair_tokenizer

    @property
    def transformers_models(self) -> dict[Author, Any]:
        """The two models as transformers loaded them; they may be run beside the decoder."""
        return dict(self._models)

    @property
    def has_chat_template(self) -> bool:
        """Whether `messages=` works."""
        return self._pair_tokenizer.has_chat_template

    @property
    def max_context(self) -> int:
        """Tokens of prompt and completion together, at most."""
        return self._engine.max_context

    def encode(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The token ids that one prompt or chat becomes, checked as for `generate`.

        Raises:
            ConfigError: a wrong argument, an empty prompt.
            ContextOverflowError: the prompt leaves no room to write.
        """
        _refuse_unless_one(prompt, messages)
        if tools is not None and messages is None:
            raise ConfigError("tools need messages: only a chat template can show them.")
        if messages is not None:
            ids = self._pair_tokenizer.encode_chat(messages, tools=tools)
        elif isinstance(prompt, str):
            ids = self._pair_tokenizer.encode(prompt)
        else:
            ids = self._checked_ids(prompt)
        if not ids:
            raise ConfigError("the prompt is empty: at least one token is needed to go on from.")
        if (largest := max(ids)) >= self._vocab_size:
            raise ConfigError(
                f"the prompt's token id {largest} is outside [0, {self._vocab_size - 1}], the "
                "leader's vocabulary. Where a tokenizer was given tokens that its model lacks, "
                "call resize_token_embeddings first."
            )
        if len(ids) >= self.max_context:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens; the context holds {self.max_context}, and at "
                "least one must stay free to write. Shorten the prompt or raise max_context, if "
                "both models take more."
            )
        return ids

    @property
    def models(self) -> dict[str, str]:
        """Names of "leader" and "draft"."""
        return {author: profile.name for author, profile in self._engine.profiles.items()}

    @property
    def profiles(self) -> dict[Author, ModelProfile]:
        """What a token and a pass of "leader" and "draft" cost."""
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

    def _submit(
        self, ids: list[int], settings: FoReaLConfig, push: Push, on_done: OnDone | None
    ) -> Request:
        return self._engine.submit(ids, settings, push, _and_then(on_done, push))

    def _submit_all(
        self, prompts: list[list[int]], settings: FoReaLConfig
    ) -> tuple[list[Request], list[Future[Generation]]]:
        futures: list[Future[Generation]] = [Future() for _ in prompts]
        requests: list[Request] = []
        try:
            for ids, future in zip(prompts, futures, strict=True):
                requests.append(self._engine.submit(ids, settings, _ignore, _resolver(future)))
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return requests, futures

    def _encode(self, prompt: Any, messages: Any, tools: Any) -> tuple[bool, list[list[int]]]:
        """(is a batch, token ids of each prompt)."""
        _refuse_unless_one(prompt, messages)
        if messages is not None:
            batch = isinstance(messages, Sequence) and bool(messages) and _is_chat(messages[0])
            chats = list(messages) if batch else [messages]
            return batch, [self.encode(messages=chat, tools=tools) for chat in chats]
        batch = (
            isinstance(prompt, Sequence)
            and not isinstance(prompt, str)
            and any(isinstance(one, str) or _is_sequence(one) for one in prompt)
        )
        prompts = list(prompt) if batch else [prompt]
        return batch, [self.encode(one, tools=tools) for one in prompts]

    def _checked_ids(self, prompt: Any) -> list[int]:
        if not _is_sequence(prompt):
            raise ConfigError(
                f"a prompt of type {type(prompt).__name__} is not allowed: a str or a sequence of "
                "token ids."
            )
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int):
                raise ConfigError(
                    f"the prompt's token id {token!r} is not allowed: an integer in "
                    f"[0, {self._vocab_size - 1}]."
                )
            if token < 0:
                raise ConfigError(
                    f"the prompt's token id {token} is not allowed: an integer in "
                    f"[0, {self._vocab_size - 1}]."
                )
        return list(prompt)


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


def _refuse_unless_one(prompt: Any, messages: Any) -> None:
    if (prompt is None) == (messages is None):
        given = "neither" if prompt is None else "both"
        raise ConfigError(f"{given} of prompt and messages given: pass exactly one of them.")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_chat(value: Any) -> bool:
    return _is_sequence(value)


def _is_long(prompt: Any, messages: Any) -> bool:
    return len(str(prompt if messages is None else messages)) > _LONG_PROMPT


def _stop(decoder: FoReaLDecoder, request: Request, future: Future[Generation]) -> None:
    request.cancel()


def _ignore(events: list[TokenEvent]) -> None:
    """A whole generation needs no events."""


def _cancel_submitted(
    submitting: asyncio.Future[tuple[list[Request], list[Future[Generation]]]],
) -> None:
    """Nobody waits any more for what a thread was submitting."""
    if not submitting.cancelled() and submitting.exception() is None:
        for request in submitting.result()[0]:
            request.cancel()


def _and_then(first: OnDone | None, then: OnDone) -> OnDone:
    """Tells both of a request's end, one after the other."""
    if first is None:
        return then

    def both(end: Generation | BaseException) -> None:
        try:
            first(end)
        except Exception:
            # Whoever waits for this request, and all others, must not pay for it.
            _logger.exception("on_done raised")
        then(end)

    return both


def _resolver(future: Future[Generation]) -> Any:
    """Hands a request's end to a future, unless its waiter gave up."""

    def resolve(end: Generation | BaseException) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(end, BaseException):
            future.set_exception(end)
        else:
            future.set_result(end)

    return resolve
