"""Loaded pairs, shared by all who name the same models and loading arguments."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from foreal_core import ConfigError
from foreal_core.backends.servers.options import is_url
from foreal_core.config import is_integer

if TYPE_CHECKING:
    from foreal_core import FoReaLDecoder

DEMO_NAME = "foreal-demo"

_registry_lock = threading.Lock()
_registry: weakref.WeakValueDictionary[Any, FoReaLDecoder] = weakref.WeakValueDictionary()
# Held by those who load a pair, for as long as they do.
_loading: weakref.WeakValueDictionary[Any, threading.Lock] = weakref.WeakValueDictionary()
# Decoders that users made themselves: their models' names need not tell them apart.
_given: weakref.WeakKeyDictionary[FoReaLDecoder, str] = weakref.WeakKeyDictionary()


class DecoderSource:
    """Where an integration's decoder comes from; loads at the first `get`.

    Sources of the same models and loading arguments share one decoder, which closes when the last
    of them is gone. Arguments are the same where they mean the same: `dtype="bfloat16"` and
    `torch.bfloat16`, `device_map=0` and `"cuda:0"`, a folder's names, a default that is given.

    Args:
        leader, draft: hub ids or folders, or two addresses of inference servers; both None means
            the bundled pair.
        arguments: further arguments of `FoReaLDecoder.from_pretrained`, and "threads", torch's
            in this process; "server_kwargs" has those of `FoReaLDecoder.connect`. None values are
            left out.
        decoder: a loaded pair to use instead.

    Raises:
        ConfigError: only one model is given, or models and a decoder.
    """

    def __init__(
        self,
        leader: str | os.PathLike[str] | None,
        draft: str | os.PathLike[str] | None,
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
        servers = arguments.pop("server_kwargs", None)
        if is_url(leader):
            arguments |= servers or {}
        elif servers is not None:
            raise ConfigError(
                "server_kwargs is for inference servers: give their addresses as leader= and draft="
                " (http://host:8000), or leave it out."
            )
        self._threads = arguments.pop("threads", None)
        if self._threads is not None and not (is_integer(self._threads) and self._threads > 0):
            raise ConfigError(f"threads={self._threads!r} is not allowed: an integer >= 1.")
        self._leader = None if leader is None else os.fspath(leader)
        self._draft = None if draft is None else os.fspath(draft)
        self._arguments = arguments
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
                self._set_threads()
                found = _registry.get(self._key)
                if found is None or found.closed:
                    found = _registry[self._key] = self._load()
                self._decoder = found
        return self._decoder

    @property
    def loaded(self) -> FoReaLDecoder | None:
        """The decoder if it is in memory already."""
        if self._decoder is not None or not _registry:  # a key takes the import of torch
            return self._decoder
        return _registry.get(self._key)

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
        secret = ("api_key", "headers", "leader_kwargs", "draft_kwargs")
        given = self._arguments
        if is_url(self._leader):  # keys to a server do not tell what it writes
            given = {name: value for name, value in given.items() if name not in secret}
        meant = sorted(_meant(given).items())
        return {"model_name": self.name, **{name: repr(value) for name, value in meant}}

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_decoder": None}
        state.pop("_key", None)  # of this machine's folders and devices
        return state

    def __deepcopy__(self, memo: Any) -> DecoderSource:
        return self  # a copy would load or be given the same decoder

    @functools.cached_property
    def _key(self) -> Any:
        """Equal for sources that mean the same pair, loaded in the same way."""
        from foreal_core import FoReaLDecoder

        opens = FoReaLDecoder.connect if is_url(self._leader) else FoReaLDecoder.from_pretrained
        parameters = inspect.signature(opens).parameters.values()
        defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        leader, draft, arguments = self._asked
        both = {**defaults, **_meant(arguments)}
        # A model's own arguments win over those of both, as when it is loaded.
        own = [both.pop(name) or {} for name in ("leader_kwargs", "draft_kwargs")]
        return tuple(
            (_folder(name), _frozen({**both, **mine}))
            for name, mine in zip((leader, draft), own, strict=True)
        )

    @property
    def _asked(self) -> tuple[str, str, dict[str, Any]]:
        """Leader, draft and arguments of `FoReaLDecoder.open`."""
        from foreal_core.demo import pair_paths

        if self._leader is None or self._draft is None:
            leader, draft = pair_paths()
            return str(leader), str(draft), {"dtype": "float32", **self._arguments}
        return self._leader, self._draft, dict(self._arguments)

    def _set_threads(self) -> None:
        """They are the process's: whoever asks for others later sets them for all."""
        import torch

        if self._threads is not None:
            torch.set_num_threads(int(self._threads))

    def _load(self) -> FoReaLDecoder:
        from foreal_core import FoReaLDecoder

        leader, draft, arguments = self._asked
        return FoReaLDecoder.open(leader, draft, **arguments)


# -- arguments for loading, in one form for each meaning ---------------------------------------


def _meant(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` in one form each, whatever form they were given in."""
    forms: dict[str, Callable[[Any], Any]] = {
        "dtype": _dtype,
        "device_map": _devices,
        "quantization_config": _quantization,
        "leader_kwargs": _meant,
        "draft_kwargs": _meant,
    }
    renamed = {("dtype" if n == "torch_dtype" else n): value for n, value in arguments.items()}
    return {name: forms.get(name, _plain)(value) for name, value in renamed.items()}


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _dtype(value: Any) -> Any:
    import torch

    found = getattr(torch, value, value) if isinstance(value, str) else value
    return str(found) if isinstance(found, torch.dtype) else found


def _devices(value: Any) -> Any:
    """A map by module with its devices in one form; one device for all is no map."""
    if not isinstance(value, Mapping):
        return _device(value)
    devices = {module: _device(one) for module, one in value.items()}
    return devices[""] if list(devices) == [""] else devices


def _device(value: Any) -> Any:
    import torch

    here = torch.accelerator.current_accelerator()
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{here.type if here else 'cuda'}:{value}"
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return value  # "auto", "disk", None, or what loading will refuse
    if device == here:  # without a number
        return f"{device.type}:{torch.accelerator.current_device_index()}"
    return str(device)


def _quantization(value: Any) -> Any:
    from transformers.quantizers.auto import AutoQuantizationConfig

    if isinstance(value, Mapping):
        with contextlib.suppress(Exception):  # what it does not take, loading will refuse
            return AutoQuantizationConfig.from_dict(dict(value))
    return value


def _folder(name: str) -> str:
    """A folder by one of its names; hub ids stay what they are."""
    return os.path.realpath(name) if os.path.isdir(name) else name


def _frozen(value: Any) -> Any:
    """A hashable stand-in; objects that have no value of their own count as themselves."""
    if isinstance(value, Mapping):
        return ("mapping", *sorted((str(name), _frozen(one)) for name, one in value.items()))
    if isinstance(value, list | tuple):
        return ("sequence", *(_frozen(one) for one in value))
    # The type too: 1, 1.0 and True are equal. repr makes unlike types sortable.
    return (type(value).__name__, repr(value))
