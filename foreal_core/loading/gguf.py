"""GGUF files: who runs them, and the model and tokenizer that llama.cpp makes of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreal_core.backends.llama_cpp.library import is_installed
from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.backends.llama_cpp.options import options_of
from foreal_core.backends.llama_cpp.tokenizer import load_tokenizer
from foreal_core.errors import ConfigError, ModelLoadError

BACKENDS = ("llama.cpp", "torch")
_SUFFIX = ".gguf"
# Of `from_pretrained`: which file of a repository is meant.
_OF_THE_HUB = ("revision", "subfolder", "token", "cache_dir", "local_files_only")


def runs_in_llama_cpp(name: str, options: Mapping[str, Any], backend: str | None) -> bool:
    """Whether llama.cpp is to run a model. By default it does where it is a GGUF file, named as
    such or by `gguf_file`, which transformers can dequantise where llama.cpp is missing.

    Raises:
        ConfigError: there is no such backend, or llama.cpp is asked for what is no GGUF file.
    """
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r} is not allowed: {', '.join(BACKENDS)}, or None.")
    named = str(name).endswith(_SUFFIX)
    if backend == "llama.cpp" and not (named or options.get("gguf_file")):
        raise ConfigError(
            f"backend='llama.cpp' runs GGUF files, and {str(name)!r} is none: name a *.gguf file, "
            "or one of a folder or hub id by gguf_file (leader_kwargs, draft_kwargs)."
        )
    if backend is not None:
        return backend == "llama.cpp"
    return named or (bool(options.get("gguf_file")) and is_installed())


def as_transformers_names(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Folder and options of a model as transformers takes them: a GGUF file goes by its folder."""
    if not str(name).endswith(_SUFFIX):
        return name, options
    path = Path(name).expanduser()
    return str(path.parent), {**options, "gguf_file": path.name}


class GGUFSource:
    """A model and tokenizer from a GGUF file.

    Args:
        role: "leader" or "draft".
        name: the file, or a folder or hub id with `gguf_file` among the options.
        options: of `from_pretrained`.
    """

    def __init__(self, role: str, name: str, options: Mapping[str, Any]) -> None:
        self.role = role
        own = dict(options)
        where = {key: own.pop(key) for key in _OF_THE_HUB if key in own}
        file = own.pop("gguf_file", None)
        self._tokenizer: str | None = own.pop("tokenizer", None)
        self._options = options_of(role, own)
        self._path = Path(name).expanduser() if file is None else _resolve(role, name, file, where)

    def need(self) -> None:
        """Not known: weights are mapped, and what is on a GPU is llama.cpp's own affair."""
        return None

    def load(self, need: object, place: int | None) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        model = LlamaModel(self.role, self._path, self._options)
        if self._tokenizer is None:
            return model, load_tokenizer(self.role, model)
        from transformers import AutoTokenizer

        try:
            return model, AutoTokenizer.from_pretrained(self._tokenizer)
        except Exception as error:
            raise ModelLoadError(
                f"the {self.role}'s tokenizer {self._tokenizer!r} could not be loaded: {error}"
            ) from error


def _resolve(role: str, name: str, file: str, where: Mapping[str, Any]) -> Path:
    from transformers.utils import cached_file

    try:
        return Path(
            cached_file(
                str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name,
                file,
                **where,
            )
        )
    except Exception as error:
        raise ModelLoadError(
            f"the {role}'s file {file!r} of {str(name)!r} could not be found: {error}"
        ) from error
