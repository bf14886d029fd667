"""What both LangChain classes share: the fields, their checks, and the life of one call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from langchain_core.language_models.base import LangSmithParams
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SkipValidation,
    create_model,
)

from foreal_core import (
    AsyncTokenStream,
    ConfigError,
    FoReaLConfig,
    FoReaLError,
    Generation,
    TokenEvent,
)
from foreal_integrations.langchain.callbacks import ledgers
from foreal_integrations.shared import (
    SETTINGS,
    CostLedger,
    DecoderSource,
    Record,
    canonical,
    charge_result,
    joined_stops,
    refuse_unknown,
    timed_out,
)

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder

    _Settings = BaseModel
else:
    # FoReaLConfig itself checks the values and says what is allowed; pydantic only holds them.
    _Settings = create_model(
        "_Settings",
        **{
            name: (Annotated[hint, SkipValidation], Field(default=default))
            for name, (hint, default) in SETTINGS.items()
        },
    )

# More text than this is encoded in a thread, so that the event loop goes on.
_LONG_PROMPT = 16_384
# What LangChain's own methods pass along with a call.
_OF_THE_FRAMEWORK = frozenset({"tags", "metadata", "run_name", "run_id"})


class FoReaLFields(_Settings):
    """The constructor arguments of `FoReaLLLM` and `ChatFoReaL`.

    Every field of `FoReaLConfig` is one of them, and an argument of every single call as well
    (`invoke(..., lead_count=8)`, `bind(seed=1)`); `max_tokens` is another name of
    `max_new_tokens`. Unknown arguments are refused.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    leader: str | None = None
    """Hub id or folder of the large model; without it and `draft`, the bundled pair."""
    draft: str | None = None
    """Hub id or folder of the small model."""
    decoder: Annotated[Any, SkipValidation] = Field(default=None, exclude=True, repr=False)
    """A loaded `FoReaLDecoder` to use instead."""

    device_map: Any = None
    """As in transformers' `from_pretrained`; None lets the decoder choose."""
    dtype: Any = None
    """As in transformers' `from_pretrained`; None takes the models' own."""
    max_batch_size: int | None = None
    """Requests that run side by side; the rest queue."""
    max_context: int | None = None
    """Tokens of prompt and completion together, at most."""
    leader_kwargs: dict[str, Any] | None = None
    """Further `from_pretrained` arguments of the leader (revision, quantization_config, ...)."""
    draft_kwargs: dict[str, Any] | None = None
    """Further `from_pretrained` arguments of the draft."""

    timeout: float | None = None
    """Seconds until a call is stopped with TimeoutError; also an argument of every call."""
    streaming: bool = False
    """Stream inside `invoke` too, for token callbacks."""
    max_retries: int | None = None
    """Taken for compatibility; a local model has no connection to retry."""
    api_key: SecretStr | None = None
    """Taken for compatibility; a local model needs no key."""

    _source: DecoderSource = PrivateAttr()
    # Of the copy that one call runs on: who pays for work that is stopped early.
    _payers: tuple[CostLedger, ...] = PrivateAttr(default=())

    # What a call may set beside FoReaLConfig's fields.
    _per_call: ClassVar[frozenset[str]] = frozenset({"timeout"})

    def __init__(self, **arguments: Any) -> None:
        arguments = canonical(arguments)
        refuse_unknown(arguments, type(self).model_fields, type(self).__name__)
        if arguments.get("stop") is None:
            arguments.pop("stop", None)
        super().__init__(**arguments)
        # Not in a validator: pydantic would wrap our errors in its own.
        self._check()
        self._source = DecoderSource(
            self.leader,
            self.draft,
            {
                "device_map": self.device_map,
                "dtype": self.dtype,
                "max_batch_size": self.max_batch_size,
                "max_context": self.max_context,
                "leader_kwargs": self.leader_kwargs,
                "draft_kwargs": self.draft_kwargs,
            },
            self.decoder,
        )

    # -- the settings of a call ---------------------------------------------------------------

    def _settings(
        self, stop: str | Sequence[str] | None, overrides: Mapping[str, Any]
    ) -> FoReaLConfig:
        """The fields, what one call overrides, and the stop strings of both."""
        values = {name: getattr(self, name) for name in SETTINGS}
        values["stop"] = joined_stops(values["stop"], stop)
        return FoReaLConfig(**values).with_overrides(**canonical(overrides))

    def _check(self) -> None:
        self._settings(None, {})
        timeout = self.timeout
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0
        ):
            raise ConfigError(
                f"timeout={timeout!r} is not allowed: it must be seconds > 0, or None."
            )

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

    def _decoder(self) -> FoReaLDecoder:
        return self._source.get()

    async def _adecoder(self) -> FoReaLDecoder:
        loaded = self._source.loaded
        return loaded if loaded is not None else await asyncio.to_thread(self._source.get)

    async def _aencode(self, decoder: FoReaLDecoder, size: int, **request: Any) -> list[int]:
        """`encode`, in a thread for long texts; `size` is in characters."""
        if size > _LONG_PROMPT:
            return await asyncio.to_thread(decoder.encode, **request)
        return decoder.encode(**request)

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

    async def _aevents(self, stream: AsyncTokenStream) -> AsyncIterator[TokenEvent]:
        """The stream's events until the time is over. The clock runs only while we wait here: a
        time-out across `yield` would strike the consumer."""
        if self.timeout is None:
            async for event in stream:
                yield event
            return
        end = asyncio.get_running_loop().time() + self.timeout
        while True:
            try:
                async with asyncio.timeout_at(end):
                    event = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise timed_out(self.timeout) from None
            yield event

    async def _aabandon(self, stream: AsyncTokenStream) -> None:
        """Stops a stream that nobody reads on, and charges it."""
        await stream.aclose()
        charge_result(stream, self._charge)

    # -- what LangChain asks about the model ----------------------------------------------------

    @property
    def model_name(self) -> str:
        """The pair in one word; does not load it."""
        return self._source.name

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**self._source.identity, **self._settings(None, {}).to_dict()}

    def get_token_ids(self, text: str) -> list[int]:
        """The text's ids in the leader's tokenizer, without special tokens (loads the pair)."""
        ids = self._decoder().tokenizer(text, add_special_tokens=False, verbose=False)
        return list(ids["input_ids"])

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
