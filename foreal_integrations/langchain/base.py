"""What both LangChain classes share: the fields, their checks, and the life of one call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import (
    BaseLanguageModel,
    LangSmithParams,
    LanguageModelInput,
)
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list
from pydantic import PrivateAttr, SecretStr

from foreal_core import FoReaLConfig, Generation, TokenEvent
from foreal_core.chat.ledger import CostLedger
from foreal_core.chat.settings import SETTINGS, TEMPLATE_OPTIONS, canonical, refuse_unknown
from foreal_core.chat.timeouts import events_in_time, in_time, timed_out
from foreal_integrations.fields import PairFields
from foreal_integrations.langchain.callbacks import Account, ledgers

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder, Prompt

_MOST_THREADS = 32
# What LangChain's own methods pass along with a call.
_OF_THE_FRAMEWORK = frozenset({"stop", "tags", "metadata", "run_name", "run_id"})


# What LangChain passes to the methods that it calls.
Stop: TypeAlias = list[str] | None
Manager: TypeAlias = CallbackManagerForLLMRun | None
AsyncManager: TypeAlias = AsyncCallbackManagerForLLMRun | None

C = TypeVar("C")
Chunk = TypeVar("Chunk", covariant=True)


class ChunkReader(Protocol[Chunk]):
    """Makes LangChain's chunks of one text as it is written."""

    def chunks(self, event: TokenEvent) -> Iterable[Chunk]:
        """Those that became certain with one more token."""
        ...

    def last_chunks(self, generation: Generation) -> Iterable[Chunk]:
        """Those of the end: what was held back, then what only the whole text tells."""
        ...


Reader = TypeVar("Reader", bound=ChunkReader[Any], covariant=True)


@dataclass(frozen=True)
class Request(Generic[Reader]):
    """A prompt that is ready to run, and who reads what is written."""

    decoder: FoReaLDecoder
    prompt: Prompt
    settings: FoReaLConfig
    reader: Reader


if TYPE_CHECKING:
    _Framework = BaseLanguageModel[Any]
else:  # each of the two classes brings LangChain's own one
    _Framework = object


class FoReaLModel(PairFields, _Framework):
    """What `FoReaLLLM` and `ChatFoReaL` share: their arguments, and how a call runs.

    Every field of `FoReaLConfig` is one of them, and an argument of every single call as well
    (`invoke(..., lead_count=8)`, `bind(seed=1)`); `max_tokens` is another name of
    `max_new_tokens`. Unknown arguments are refused.
    """

    streaming: bool = False
    """Stream inside `invoke` too, for token callbacks."""
    max_retries: int | None = None
    """Taken for compatibility; a local model has no connection to retry."""
    api_key: SecretStr | None = None
    """Taken for compatibility; a local model needs no key."""

    # Of the copy that one call runs on: who pays for work that is stopped early.
    _payers: tuple[CostLedger, ...] = PrivateAttr(default=())

    # What a call may set beside FoReaLConfig's fields, and what is left to LangChain.
    _per_call: ClassVar[frozenset[str]] = frozenset({"timeout", *TEMPLATE_OPTIONS})
    _passed_on: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._add_version(*_package_version())

    # -- entry points: each call runs on a copy that holds its settings ---------------------------

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        call, rest = self._for_call(kwargs, ensure_config(config).get("callbacks"))
        return super(FoReaLModel, call).stream(input, config, **rest)

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        call, rest = self._for_call(kwargs, ensure_config(config).get("callbacks"))
        return super(FoReaLModel, call).astream(input, config, **rest)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Calls of their own, side by side: what fails does not end the others."""
        configs = self._wide_configs(config, len(inputs))
        return Runnable.batch(self, inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Any]]:
        configs = self._wide_configs(config, len(inputs))
        return super().batch_as_completed(  # type: ignore[call-overload,no-any-return]
            inputs, configs, return_exceptions=return_exceptions, **kwargs
        )

    # -- the settings of a call ---------------------------------------------------------------

    def _for_call(
        self, arguments: Mapping[str, Any], callbacks: Any
    ) -> tuple[Self, dict[str, Any]]:
        """A copy of the model that one call runs on, with the call's settings for fields, and the
        arguments that are left.

        With the settings in the fields they are in everything that LangChain makes of these: the
        cache key, which would otherwise ignore them, and the traces.

        Args:
            arguments: of the call.
            callbacks: of the call.
        """
        arguments = canonical(arguments)
        own = {*SETTINGS, *self._per_call} - {"stop"}  # which joins the constructor's
        known = own | _OF_THE_FRAMEWORK | self._passed_on
        refuse_unknown(arguments, known, f"a call of {type(self).__name__}")
        call = self._with(arguments, own)
        call.__dict__.pop("_serialized", None)  # LangChain's, computed from the old fields
        call._check()
        call._payers = ledgers(callbacks, self.callbacks)
        return call, {name: value for name, value in arguments.items() if name not in own}

    def _entered(
        self, run_manager: Any, arguments: Mapping[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """`_for_call` where LangChain came in past our entry points: a model that has the run's own
        ledgers and what a call may set beside the settings, and the arguments that are left."""
        rest = {name: value for name, value in arguments.items() if name not in self._per_call}
        unpaid = run_manager is not None and not self._payers
        if len(rest) == len(arguments) and not unpaid:
            return self, rest
        call = self._with(arguments, self._per_call)
        call._check()
        if unpaid:
            call._payers = ledgers(run_manager.handlers, None)
        return call, rest

    def _with(self, arguments: Mapping[str, Any], names: Collection[str]) -> Self:
        """A copy whose fields of these names are the call's where the call sets them."""
        changed = {name: value for name, value in arguments.items() if name in names}
        if any(name in changed for name in TEMPLATE_OPTIONS):  # added to the constructor's
            told = self._template(changed)
            changed.update(dict.fromkeys(TEMPLATE_OPTIONS), chat_template_kwargs=told)
        return self.model_copy(update=changed)

    def _wide_configs(
        self, config: RunnableConfig | Sequence[RunnableConfig] | None, count: int
    ) -> list[RunnableConfig]:
        """Configs under which LangChain runs as many calls in threads as the decoder takes into
        one pass; by default it runs as many as the machine has cores and four more."""
        width = max(1, min(count, self.max_batch_size or _MOST_THREADS))
        return [
            {**one, "max_concurrency": one.get("max_concurrency") or width}
            for one in get_config_list(config, count)
        ]

    # -- requests -----------------------------------------------------------------------------

    def _generations(
        self, decoder: FoReaLDecoder, prompts: Sequence[Prompt], settings: FoReaLConfig
    ) -> list[Generation]:
        """All prompts at once; what is left of them when one fails or the time is over is stopped
        within a step, and all are charged."""
        account = Account(self._payers)
        try:
            futures = account.submit(decoder, prompts, settings)
            done, late = wait(futures, self.timeout, FIRST_EXCEPTION)
            failed = [future for future in futures if future in done and future.exception()]
            if late and not failed:
                raise timed_out(self.timeout)
            return [future.result() for future in failed or futures]
        except BaseException:
            account.stop()
            account.wait()
            raise

    async def _agenerations(
        self, decoder: FoReaLDecoder, prompts: Sequence[Prompt], settings: FoReaLConfig
    ) -> list[Generation]:
        """`_generations` for an event loop; a cancelled task stops its work, too."""
        account = Account(self._payers)
        try:
            async with asyncio.timeout(self.timeout):
                if settings.constrained:  # a schema may take long to compile
                    futures = await asyncio.to_thread(account.submit, decoder, prompts, settings)
                else:
                    futures = account.submit(decoder, prompts, settings)
                return await asyncio.gather(*map(asyncio.wrap_future, futures))
        except BaseException as error:
            account.stop()
            await asyncio.to_thread(account.wait)
            if isinstance(error, TimeoutError):
                raise timed_out(self.timeout) from None
            raise

    def _chunks(self, request: Request[ChunkReader[C]]) -> Generator[C, None, None]:
        """A text as it is written; it is stopped and charged when it is left before its end."""
        account = Account(self._payers)
        decoder, prompt, settings = request.decoder, request.prompt, request.settings
        try:
            stream = decoder.stream(prompt, settings, on_done=account.settle)
            with in_time([stream], self.timeout):
                for event in stream:
                    yield from request.reader.chunks(event)
                # A time-out is raised at once, not behind a last chunk.
                if stream.result.finish_reason == "cancelled":
                    raise timed_out(self.timeout)
                yield from request.reader.last_chunks(stream.result)
        except BaseException:
            account.stop()
            raise

    async def _achunks(self, request: Request[ChunkReader[C]]) -> AsyncGenerator[C, None]:
        """`_chunks` for an event loop."""
        account = Account(self._payers)
        stream = request.decoder.astream(request.prompt, request.settings, on_done=account.settle)
        try:
            async with contextlib.aclosing(events_in_time(stream, self.timeout)) as events:
                async for event in events:
                    for chunk in request.reader.chunks(event):
                        yield chunk
            for chunk in request.reader.last_chunks(stream.result):
                yield chunk
        except GeneratorExit:
            # The loop may be closing all generators at once: nothing more may be awaited here.
            account.stop()
            stream.cancel()
            raise
        except BaseException:
            account.stop()
            await stream.aclose()
            raise

    # -- what LangChain asks about the model ----------------------------------------------------

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            **self._source.identity,
            **self._settings(None, {}).to_dict(),
            "chat_template_kwargs": self._template({}),
        }

    def _traced(
        self, kind: Any, stop: str | list[str] | None, model: Any = None
    ) -> LangSmithParams:
        """LangSmith's standard parameters; `kind` is "llm" or "chat"."""
        settings = self._settings(stop, {})
        params = LangSmithParams(
            ls_provider="foreal",
            ls_model_type=kind,
            ls_model_name=model or self.model_name,
            ls_temperature=float(settings.temperature),
            ls_max_tokens=settings.max_new_tokens,
        )
        if settings.stop:
            params["ls_stop"] = list(settings.stop)
        return params


@functools.cache
def _package_version() -> tuple[str, str]:
    """Name and version of this package, for traces."""
    name = "foreal-decoding"
    return name, version(name)
