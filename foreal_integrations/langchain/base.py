"""What both LangChain classes share: the fields, their checks, and the life of one call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Self

from langchain_core.language_models.base import LangSmithParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import PrivateAttr, SecretStr

from foreal_core import AsyncTokenStream, FoReaLConfig, Generation, TokenEvent, TokenStream
from foreal_core.chat.ledger import CostLedger
from foreal_core.chat.settings import SETTINGS, canonical, refuse_unknown
from foreal_core.chat.timeouts import in_time, timed_out
from foreal_integrations.fields import PairFields
from foreal_integrations.langchain.callbacks import Account, ledgers

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder

_MOST_THREADS = 32
# What LangChain's own methods pass along with a call.
_OF_THE_FRAMEWORK = frozenset({"tags", "metadata", "run_name", "run_id"})


class FoReaLFields(PairFields):
    """The constructor arguments of `FoReaLLLM` and `ChatFoReaL`.

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

    # What a call may set beside FoReaLConfig's fields.
    _per_call: ClassVar[frozenset[str]] = frozenset({"timeout"})

    # -- the settings of a call ---------------------------------------------------------------

    def _for_call(
        self,
        arguments: Mapping[str, Any],
        callbacks: Any,
        *,
        passed_on: Collection[str] = (),
    ) -> tuple[Self, dict[str, Any]]:
        """A copy of the model that one call runs on, with the call's settings for fields, and the
        arguments that are left.

        With the settings in the fields they are in everything that LangChain makes of these: the
        cache key, which would otherwise ignore them, and the traces.

        Args:
            arguments: of the call.
            callbacks: of the call.
            passed_on: names that are left for LangChain.
        """
        arguments = canonical(arguments)
        own = {*SETTINGS, *self._per_call}
        refuse_unknown(
            arguments, own | _OF_THE_FRAMEWORK | set(passed_on), f"a call of {type(self).__name__}"
        )
        changed = {name: value for name, value in arguments.items() if name in own}
        call = self.model_copy(update=changed)
        call.__dict__.pop("_serialized", None)  # LangChain's, computed from the old fields
        call._check()
        call._payers = ledgers(callbacks, getattr(self, "callbacks", None))
        return call, {name: value for name, value in arguments.items() if name not in own}

    def _entered(
        self, run_manager: Any, arguments: Mapping[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """`_for_call` where LangChain came in past our entry points: a model that has the run's own
        ledgers and what a call may set beside the settings, and the arguments that are left."""
        changed = {name: value for name, value in arguments.items() if name in self._per_call}
        rest = {name: value for name, value in arguments.items() if name not in changed}
        unpaid = run_manager is not None and not self._payers
        if not changed and not unpaid:
            return self, rest
        call = self.model_copy(update=changed)
        call._check()
        if unpaid:
            call._payers = ledgers(run_manager.handlers, None)
        return call, rest

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
        self, decoder: FoReaLDecoder, prompts: Sequence[list[int]], settings: FoReaLConfig
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
        self, decoder: FoReaLDecoder, prompts: Sequence[list[int]], settings: FoReaLConfig
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

    @contextlib.contextmanager
    def _streaming(
        self, decoder: FoReaLDecoder, ids: list[int], settings: FoReaLConfig
    ) -> Iterator[TokenStream]:
        """A stream that is stopped and charged when the block is left before its end."""
        account = Account(self._payers)
        try:
            stream = decoder.stream(ids, settings, on_done=account.settle)
            with in_time([stream], self.timeout):
                yield stream
        except BaseException:
            account.stop()
            raise

    def _events(self, stream: TokenStream) -> Iterator[TokenEvent]:
        """The stream's events; a time-out is raised at once, not behind a last chunk."""
        yield from stream
        if stream.result.finish_reason == "cancelled":
            raise timed_out(self.timeout)

    @contextlib.asynccontextmanager
    async def _astreaming(
        self, decoder: FoReaLDecoder, ids: list[int], settings: FoReaLConfig
    ) -> AsyncIterator[AsyncTokenStream]:
        """`_streaming` for an event loop, without the clock."""
        account = Account(self._payers)
        stream = decoder.astream(ids, settings, on_done=account.settle)
        try:
            yield stream
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
        return {**self._source.identity, **self._settings(None, {}).to_dict()}

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
def package_version() -> tuple[str, str]:
    """Name and version of this package, for traces."""
    name = "foreal-decoding"
    return name, version(name)
