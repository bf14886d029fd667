"""Loaded pairs, shared by all who name the same models and loading arguments."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foreal_core import ConfigError

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder

DEMO_NAME = "foreal-demo"

_registry_lock = threading.Lock()
_registry: weakref.WeakValueDictionary[Any, FoReaLDecoder] = weakref.WeakValueDictionary()
_loading: dict[Any, threading.Lock] = {}
# Decoders that users made themselves: their models' names need not tell them apart.
_given: weakref.WeakKeyDictionary[FoReaLDecoder, str] = weakref.WeakKeyDictionary()


class DecoderSource:
    """Where an integration's decoder comes from; loads at the first `get`.

    Sources of the same models and loading arguments share one decoder, which closes when the last
    of them is gone.

    Args:
        leader, draft: hub ids or folders; both None means the bundled pair.
        arguments: further arguments of `FoReaLDecoder.from_pretrained`; None values are left out.
        decoder: a loaded pair to use instead.

    Raises:
        ConfigError: only one model is given, or models and a decoder.
    """

    def __init__(
        self,
        leader: str | None,
        draft: str | None,
        arguments: Mapping[str, Any],
        decoder: FoReaLDecoder | None = None,
    ) -> None:
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if (leader is None) != (draft is None):
            missing = "draft" if draft is None else "leader"
            raise ConfigError(
                f"{missing} is missing: give leader= and draft=, or neither for the bundled pair."
            )
        if isinstance(decoder, str):
            raise ConfigError(
                f"decoder={decoder!r} is not allowed: it must be a FoReaLDecoder. A model that was "
                "made with one does not carry it: give decoder= again, or leader= and draft=."
            )
        if decoder is not None and (leader is not None or arguments):
            raise ConfigError(
                "decoder= is a loaded pair: leader=, draft= and arguments for loading have no "
                "place beside it."
            )
        self._leader, self._draft, self._arguments = leader, draft, arguments
        self._key = _frozen((leader, draft, arguments))
        self._given = decoder is not None
        self._decoder = decoder

    def get(self) -> FoReaLDecoder:
        """The decoder, loaded now if no source of the same models has loaded it.

        Raises:
            ModelLoadError, IncompatibleModelsError: see `FoReaLDecoder.from_pretrained`.
        """
        if self._decoder is None or (not self._given and self._decoder.closed):
            with _registry_lock:
                lock = _loading.setdefault(self._key, threading.Lock())
            with lock:  # one lock per pair: loading one must not hold up the others
                found = _registry.get(self._key)
                if found is None or found.closed:
                    found = _registry[self._key] = self._load()
                self._decoder = found
        return self._decoder

    @property
    def loaded(self) -> FoReaLDecoder | None:
        """The decoder if it is in memory already."""
        return self._decoder or _registry.get(self._key)

    @property
    def name(self) -> str:
        """The pair in one word, without loading it."""
        if self._given:
            assert self._decoder is not None
            return "+".join(self._decoder.models.values())
        return DEMO_NAME if self._leader is None else f"{self._leader}+{self._draft}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells one pair from another in a cache key: names and loading arguments."""
        if self._given:
            assert self._decoder is not None
            with _registry_lock:
                token = _given.setdefault(self._decoder, uuid.uuid4().hex)
            return {"model_name": self.name, "decoder": token}
        arguments = {name: repr(value) for name, value in sorted(self._arguments.items())}
        return {"model_name": self.name, **arguments}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decoder": None}

    def __deepcopy__(self, memo: Any) -> DecoderSource:
        return self  # a copy would load or be given the same decoder

    def _load(self) -> FoReaLDecoder:
        from foreal_core import FoReaLDecoder
        from foreal_core.demo import pair_paths

        if self._leader is None or self._draft is None:
            leader, draft = pair_paths()
            arguments = {"dtype": "float32", **self._arguments}
            return FoReaLDecoder.from_pretrained(str(leader), str(draft), **arguments)
        return FoReaLDecoder.from_pretrained(self._leader, self._draft, **self._arguments)


def _frozen(value: Any) -> Any:
    """A hashable stand-in; objects that have no value of their own count as themselves."""
    if isinstance(value, Mapping):
        return ("mapping", *sorted((str(name), _frozen(one)) for name, one in value.items()))
    if isinstance(value, list | tuple):
        return ("sequence", *(_frozen(one) for one in value))
    # The type too: 1, 1.0 and True are equal. repr makes unlike types sortable.
    return (type(value).__name__, repr(value))
