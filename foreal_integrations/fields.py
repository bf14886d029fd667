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
from foreal_core.chat.settings import SETTINGS, canonical, joined_stops, refuse_unknown
from foreal_core.config import is_number

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

# More text than this (in characters) is encoded in a thread, so that the event loop goes on.
_LONG_PROMPT = 16_384


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
    """Hub id or folder of the large model; without it and `draft`, the bundled pair."""
    draft: ModelName | None = None
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
        loading = {
            "device_map": self.device_map,
            "dtype": self.dtype,
            "max_batch_size": self.max_batch_size,
            "max_context": self.max_context,
            "leader_kwargs": self.leader_kwargs,
            "draft_kwargs": self.draft_kwargs,
        }
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

    def _check(self) -> None:
        self._settings(None, {})
        check_timeout(self.timeout)

    def _decoder(self) -> FoReaLDecoder:
        return self._source.get()

    async def _adecoder(self) -> FoReaLDecoder:
        loaded = self._source.loaded
        return loaded if loaded is not None else await asyncio.to_thread(self._source.get)

    async def _aencode(self, decoder: FoReaLDecoder, **request: Any) -> list[int]:
        """`encode`, in a thread for long texts."""
        if len(str(request)) > _LONG_PROMPT:
            return await asyncio.to_thread(decoder.encode, **request)
        return decoder.encode(**request)


def check_timeout(timeout: Any) -> None:
    """Raises ConfigError for what is no time-out."""
    in_range = is_number(timeout) and 0 < timeout <= threading.TIMEOUT_MAX
    if timeout is not None and not in_range:
        raise ConfigError(
            f"timeout={timeout!r} is not allowed: it must be seconds > 0 (at most "
            f"{threading.TIMEOUT_MAX:.0f}), or None."
        )
