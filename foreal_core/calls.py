"""The calls of a decoder: from a prompt to a Generation, whole or streamed, sync or async."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeAlias, overload

from foreal_core.config import FoReaLConfig
from foreal_core.engine.ends import OnDone, ends_future, ends_stream
from foreal_core.engine.engine import Engine
from foreal_core.engine.futures import GenerationFuture
from foreal_core.engine.gather import agather, gather
from foreal_core.engine.own_thread import before_waiting
from foreal_core.engine.request import Request
from foreal_core.engine.spans import SpanEngine
from foreal_core.engine.streams import AsyncTokenStream, Push, TokenStream
from foreal_core.errors import ConfigError
from foreal_core.events import Generation
from foreal_core.prompts import Messages, Prompt, PromptLike, Prompts, is_long

Tools: TypeAlias = Sequence[Mapping[str, Any]]
TemplateKwargs: TypeAlias = Mapping[str, Any]

# What `prepare` takes beside prompt and messages; all other options are settings.
_TO_PREPARE = ("tools", "chat_template_kwargs")


class Calls:
    """What a `FoReaLDecoder` is called with.

    Args:
        engine: runs the requests.
        prompts: prepares them.
        queue_is_bounded: whether submitting may have to wait.
        recommended: sampling settings that the leader recommends.
    """

    def __init__(
        self,
        engine: Engine | SpanEngine,
        prompts: Prompts,
        *,
        queue_is_bounded: bool,
        recommended: Mapping[str, float],
    ) -> None:
        self._engine = engine
        self._prompts = prompts
        self._queue_is_bounded = queue_is_bounded
        self._recommended = dict(recommended)
        self._warned = False

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

    def encode(self, prompt: PromptLike | None = None, **options: Any) -> list[int]:
        """The token ids of `prepare`, whose arguments it takes."""
        return list(self.prepare(prompt, **options).ids)

    def _asked(
        self,
        prompt: PromptLike | None,
        config: FoReaLConfig | None,
        messages: Messages | None,
        options: Mapping[str, Any],
    ) -> tuple[tuple[int, ...], FoReaLConfig]:
        """Ids and settings of one request; `options` are those of `prepare` and settings."""
        to_prepare, overrides = _split(options)
        settings = self._settings(config, overrides)
        return self.prepare(prompt, messages=messages, **to_prepare).ids, settings

    def _settings(self, config: FoReaLConfig | None, overrides: Mapping[str, Any]) -> FoReaLConfig:
        if config is not None and not isinstance(config, FoReaLConfig):
            raise ConfigError(
                f"config of type {type(config).__name__} is not allowed: a FoReaLConfig or None."
            )
        settings = (config or FoReaLConfig()).with_overrides(**overrides)
        greedy = settings.sampling == "given" and settings.temperature == 0
        drawn = self._recommended.get("temperature", 0) > 0
        if greedy and drawn and "temperature" not in overrides and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._engine.profiles['leader'].name} recommends sampling "
                f"({_spelled(self._recommended)}) and this call is greedy: sampling='model' draws "
                "as it recommends, temperature=0 in the call says that greedy is meant.",
                stacklevel=3,
            )
        return settings.as_recommended(self._recommended)

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
        settings = self._settings(config, overrides)
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
        return batch.shaped(gather(self._engine, batch.asked))

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
        settings = self._settings(config, overrides)
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
        blocks = settings.constrained or self._queue_is_bounded
        return batch.shaped(await agather(self._engine, batch.asked, blocks=blocks))

    def submit(
        self,
        prompt: PromptLike | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        on_done: OnDone | None = None,
        **options: Any,
    ) -> Future[Generation]:
        """`generate` for one prompt or chat that returns at once; `concurrent.futures` waits for
        several of them. Cancelling the future stops its work within one step.

        Raises at once what is wrong with the arguments; the future raises what goes wrong later.

        Args:
            on_done: as in `stream`; a cancelled future's work ends there too.
        """
        ids, settings = self._asked(prompt, config, messages, options)
        future = GenerationFuture()
        request = self._engine.submit(ids, settings, None, ends_future(on_done, future))
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
        on_done: OnDone | None = None,
        **options: Any,
    ) -> TokenStream:
        """Token events of one prompt or chat as they are written; arguments as in `generate`.

        Raises at once what is wrong with the arguments, while iterating what goes wrong later.

        Args:
            on_done: called once with the Generation or the error that ends the request, right
                before the stream ends, also where nobody reads or closes it. Runs in a thread of
                its own; what it raises is logged.
        """
        ids, settings = self._asked(prompt, config, messages, options)
        return TokenStream(
            lambda push: self._engine.submit(ids, settings, push, ends_stream(on_done, push))
        )

    def astream(
        self,
        prompt: PromptLike | None = None,
        config: FoReaLConfig | None = None,
        *,
        messages: Messages | None = None,
        on_done: OnDone | None = None,
        **options: Any,
    ) -> AsyncTokenStream:
        """`stream` for an event loop; the request starts at the first `await`."""
        to_prepare, overrides = _split(options)
        settings = self._settings(config, overrides)

        def start(push: Push) -> Request[Any]:
            ids = self.prepare(prompt, messages=messages, **to_prepare).ids
            return self._engine.submit(ids, settings, push, ends_stream(on_done, push))

        long = is_long(prompt, messages, *to_prepare.values())
        return AsyncTokenStream(start, start_blocks=long or settings.constrained)


def _spelled(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in values.items())


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `prepare` takes of the options, and the settings among them."""
    to_prepare = {name: value for name, value in options.items() if name in _TO_PREPARE}
    settings = {name: value for name, value in options.items() if name not in _TO_PREPARE}
    return to_prepare, settings


def _stop(decoder: Calls, request: Request[Any], future: Future[Generation]) -> None:
    request.cancel()
