"""The constructor arguments that every framework's model classes share, as pydantic fields."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SkipValidation,
    create_model,
)

from foreal_core import ConfigError, FoReaLConfig
from foreal_core.chat.pairs import DecoderSource
from foreal_core.chat.settings import (
    SETTINGS,
    TEMPLATE_OPTIONS,
    canonical,
    joined_stops,
    refuse_unknown,
    template_options,
)
from foreal_core.config import is_number
from foreal_core.prompts import Prompt, is_long

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

# Fields that say how a pair is loaded.
_LOADING = (
    *("device_map", "dtype", "max_batch_size", "max_context", "max_queue"),
    *("static_shapes", "compile", "threads", "prefix_cache", "leader_kwargs", "draft_kwargs"),
    "server_kwargs",
)


def _path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


ModelName = Annotated[str, BeforeValidator(_path_text)]


class PairFields(_Settings):
    """Which pair, how it is loaded, how it writes. To be mixed into a framework's class.

    Every field of `FoReaLConfig` is one of the arguments; `max_tokens` is another name of
    `max_new_tokens`. Unknown arguments are refused. The pair is loaded at the first call, and one
    engine serves all that name the same models and loading arguments.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    leader: ModelName | None = None
    """Hub id or folder of the large model, or the address of an inference server that has it;
    without it and `draft`, the bundled pair."""
    draft: ModelName | None = None
    """Hub id, folder or address of the small model."""
    decoder: Annotated[Any, SkipValidation] = Field(default=None, exclude=True, repr=False)
    """A loaded `FoReaLDecoder` to use instead."""

    chat_template_kwargs: Annotated[dict[str, Any] | None, SkipValidation] = None
    """What the chat template itself understands, by name; those of a call are added, and win."""
    enable_thinking: bool | None = None
    """One of them: whether to think before the answer, for templates that leave the choice."""
    documents: list[dict[str, Any]] | None = None
    """One of them: texts to answer from, for templates that show such."""

    device_map: Any = None
    """As in transformers' `from_pretrained`; None lets the decoder choose."""
    dtype: Any = None
    """As in transformers' `from_pretrained`; None takes the models' own."""
    max_batch_size: int | None = None
    """Requests that run side by side; the rest queue."""
    max_context: int | None = None
    """Tokens of prompt and completion together, at most."""
    max_queue: int | None = None
    """Requests that wait at most; beyond that calls are refused. None sets no bound."""
    static_shapes: bool | None = None
    """Run short passes at few fixed shapes; None does so on CUDA."""
    compile: bool | None = None
    """Run those passes through torch.compile."""
    threads: int | None = None
    """torch's threads in this process, set when the pair is loaded; None leaves them alone."""
    prefix_cache: bool | None = None
    """Start requests from what others have read of the same beginning; None does so."""
    leader_kwargs: dict[str, Any] | None = None
    """Further `from_pretrained` arguments of the leader (revision, quantization_config, ...)."""
    draft_kwargs: dict[str, Any] | None = None
    """Further `from_pretrained` arguments of the draft."""
    server_kwargs: Annotated[dict[str, Any] | None, SkipValidation] = Field(
        default=None, repr=False
    )
    """With addresses: further arguments of `FoReaLDecoder.connect` (tokenizer, api_key, ...)."""

    timeout: float | None = None
    """Seconds until a call is stopped with TimeoutError; also an argument of every call."""

    # The source that was made last, and for which fields.
    _made: tuple[tuple[Any, ...], DecoderSource] | None = PrivateAttr(default=None)

    def __init__(self, **arguments: Any) -> None:
        arguments = canonical(arguments)
        refuse_unknown(arguments, type(self).model_fields, type(self).__name__)
        if arguments.get("stop") is None:
            arguments.pop("stop", None)
        super().__init__(**arguments)
        # Not in a validator: pydantic would wrap our errors in its own.
        self._check()
        _ = self._source

    @property
    def _source(self) -> DecoderSource:
        """Where the pair of the present fields comes from; they may be assigned, also in copies."""
        loading = {name: getattr(self, name) for name in _LOADING}
        fields = (self.leader, self.draft, loading, self.decoder)
        if self._made is None or self._made[0] != fields:
            self._made = fields, DecoderSource(*fields)
        return self._made[1]

    def __getstate__(self) -> dict[Any, Any]:
        if self.decoder is not None:  # LlamaIndex would leave it out, and with it the pair
            raise TypeError(
                "a model that was made with decoder= cannot be pickled: use leader= and draft=."
            )
        return super().__getstate__()

    @property
    def model_name(self) -> str:
        """The pair in one word; does not load it."""
        return self._source.name

    def get_token_ids(self, text: str) -> list[int]:
        """The text's ids in the leader's tokenizer, without special tokens (loads the pair)."""
        ids = self._decoder().tokenizer(text, add_special_tokens=False, verbose=False)
        return list(ids["input_ids"])

    def _settings(
        self, stop: str | Sequence[str] | None, overrides: Mapping[str, Any]
    ) -> FoReaLConfig:
        """The fields, what one call overrides, and the stop strings of both."""
        values = {name: getattr(self, name) for name in SETTINGS}
        values["stop"] = joined_stops(values["stop"], stop)
        return FoReaLConfig(**values).with_overrides(**canonical(overrides))

    def _template(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the chat template is told by the fields, and by one call, which wins."""
        own = {name: getattr(self, name) for name in TEMPLATE_OPTIONS}
        return {**template_options(own), **template_options(arguments)}

    def _check(self) -> None:
        self._settings(None, {})
        self._template({})
        check_timeout(self.timeout)

    def _decoder(self) -> FoReaLDecoder:
        return self._source.get()

    async def _adecoder(self) -> FoReaLDecoder:
        loaded = self._source.loaded
        return loaded if loaded is not None else await asyncio.to_thread(self._source.get)

    async def _aprepare(self, decoder: FoReaLDecoder, **request: Any) -> Prompt:
        """`prepare`, in a thread for long texts."""
        if is_long(*request.values()):
            return await asyncio.to_thread(decoder.prepare, **request)
        return decoder.prepare(**request)


def check_timeout(timeout: Any) -> None:
    """Raises ConfigError for what is no time-out."""
    in_range = is_number(timeout) and 0 < timeout <= threading.TIMEOUT_MAX
    if timeout is not None and not in_range:
        raise ConfigError(
            f"timeout={timeout!r} is not allowed: it must be seconds > 0 (at most "
            f"{threading.TIMEOUT_MAX:.0f}), or None."
        )
