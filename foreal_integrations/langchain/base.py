"""What both LangChain classes share: the fields, their checks, and the life of one call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from langchain_core.language_models.base import LangSmithParams
from pydantic import PrivateAttr, SecretStr

from foreal_core import AsyncTokenStream, FoReaLConfig, FoReaLError, Generation
from foreal_integrations.fields import PairFields
from foreal_integrations.langchain.callbacks import ledgers
from foreal_integrations.shared import (
    SETTINGS,
    CostLedger,
    Record,
    canonical,
    charge_result,
    refuse_unknown,
    timed_out,
)

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder

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

    def _paid_by(self, run_manager: Any) -> Self:
        """The model with the run's own ledgers, where LangChain came in past our entry points."""
        if run_manager is None or self._payers:
            return self
        call = self.model_copy()
        call._payers = ledgers(run_manager.handlers, None)
        return call

    def _charge(self, record: Record) -> None:
        """Charges work that was stopped early; LangChain's callbacks never hear of its cost."""
        for ledger in self._payers:
            ledger.charge(record, stopped_early=True)

    @contextlib.contextmanager
    def _charging_failures(self) -> Iterator[None]:
        """Charges what a request that failed had cost by then."""
        try:
            yield
        except FoReaLError as error:
            if error.cost is not None:
                self._charge(error.cost.to_dict())
            raise

    # -- requests -----------------------------------------------------------------------------

    async def _agenerations(
        self, decoder: FoReaLDecoder, prompts: Sequence[list[int]], settings: FoReaLConfig
    ) -> list[Generation]:
        """All prompts at once; a cancelled task stops them within a step and is charged."""
        streams = [decoder.astream(ids, settings) for ids in prompts]

        async def read(stream: AsyncTokenStream) -> None:
            async for _ in stream:
                pass

        try:
            async with asyncio.timeout(self.timeout), asyncio.TaskGroup() as group:
                for stream in streams:
                    group.create_task(read(stream))
        except BaseException as error:
            for stream in streams:
                await stream.aclose()
                charge_result(stream, self._charge)
            if isinstance(error, TimeoutError):
                raise timed_out(self.timeout) from None
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        return [stream.result for stream in streams]

    async def _aabandon(self, stream: AsyncTokenStream) -> None:
        """Stops a stream that nobody reads on, and charges it."""
        await stream.aclose()
        charge_result(stream, self._charge)

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
