"""Loads models and tokenizers, through transformers or from GGUF files; errors name what is
missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from foreal_core.backends.llama_cpp.model import LlamaModel
from foreal_core.errors import ModelLoadError
from foreal_core.loading.gguf import GGUFSource, as_transformers_names, runs_in_llama_cpp
from foreal_core.loading.placement import (
    Need,
    need_of,
    refuse_offloaded,
    refuse_unless_they_fit,
    too_large,
    whole_places,
)
from foreal_core.loading.sources import refuse_unless_a_model


@dataclass(frozen=True)
class LoadedPair:
    """Both models with their tokenizers."""

    leader: Any
    draft: Any
    tokenizer: Any
    draft_tokenizer: Any


def load_pair(
    leader: str,
    draft: str,
    *,
    backend: str | None = None,
    common: Mapping[str, Any],
    leader_kwargs: Mapping[str, Any],
    draft_kwargs: Mapping[str, Any],
) -> LoadedPair:
    """Loads both; single kwargs win over common ones.

    Args:
        backend: what runs GGUF files: "llama.cpp", "torch", or None for the first where it is
            installed.
        common: for both; a dtype for those that transformers loads, if it loads one.

    Raises:
        ConfigError: an argument that a GGUF file does not take, or no llama.cpp to run it.
        ModelLoadError: names the model and the cause; a pair that does not fit its devices is told
            how much it needs.
    """
    # What is small first: a missing model or one too large is found before gigabytes are read.
    asked = (("leader", leader, leader_kwargs), ("draft", draft, draft_kwargs))
    in_llama = [runs_in_llama_cpp(name, {**common, **own}, backend) for _, name, own in asked]
    # Where no model has a dtype, giving one is an error.
    of_files = {k: v for k, v in common.items() if k != "dtype" or all(in_llama)}
    sources: list[_Source] = [
        GGUFSource(role, name, {**of_files, **own})
        if is_file
        else _Transformers(role, *as_transformers_names(name, {**common, **own}))
        for (role, name, own), is_file in zip(asked, in_llama, strict=True)
    ]
    needs = [source.need() for source in sources]
    known = [need for need in needs if need is not None]
    refuse_unless_they_fit(known)
    places = whole_places(known)
    models, tokenizers = [], []
    for source, need in zip(sources, needs, strict=True):
        model, tokenizer = source.load(need, places.get(source.role))
        models.append(model)
        tokenizers.append(tokenizer)
    return LoadedPair(*models, *tokenizers)


class _Source(Protocol):
    """Where one model comes from."""

    role: str

    def need(self) -> Need | None:
        """What it takes of its devices; None where that is not known."""
        ...

    def load(self, need: Need | None, place: int | None) -> tuple[Any, Any]:
        """The model, on the CUDA device `place` if that is given, and its tokenizer."""
        ...


class _Transformers:
    """A model and tokenizer that transformers loads; the small parts at once."""

    def __init__(self, role: str, name: str, options: dict[str, Any]) -> None:
        self.role = role
        self._name = name
        self._options = options
        refuse_unless_a_model(role, name, options)
        self._tokenizer = load_tokenizer(role, name, options)

    def need(self) -> Need | None:
        return _need(self.role, self._name, self._options)

    def load(self, need: Need | None, place: int | None) -> tuple[Any, Any]:
        if place is not None:
            self._options["device_map"] = {"": place}
        return _load_model(self.role, self._name, self._options, need), self._tokenizer


def end_of_sequence_ids(model: Any, tokenizer: Any) -> set[int]:
    """The ids that end the model's text, as transformers' `generate` or llama.cpp sees them."""
    if isinstance(model, LlamaModel):
        return {i for i in tokenizer.get_added_vocab().values() if model.is_end(i)}
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return set(ids) if isinstance(ids, list | tuple | set) else {int(ids)}
    return set()


def model_name(model: Any, role: str) -> str:
    """The model's id, folder or file, or its role where it has none."""
    return getattr(model.config, "_name_or_path", "") or role


def load_tokenizer(role: str, name: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        ModelLoadError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **_source(options))
    except Exception as error:
        raise _load_error(role, name, "tokenizer", error) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers builds an empty tokenizer where a folder has a config and no tokenizer.
        raise _load_error(
            role, name, "tokenizer", OSError("it has no vocabulary, files are missing")
        )
    return tokenizer


def _need(role: str, name: str, options: Mapping[str, Any]) -> Need | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, **_source(options))
    except Exception as error:
        raise _load_error(role, name, "model", error) from error
    return need_of(role, name, config, options)


def _source(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide where files are read from."""
    names = (
        *("revision", "code_revision", "subfolder", "gguf_file", "token", "cache_dir"),
        *("trust_remote_code", "local_files_only"),
    )
    return {name: options[name] for name in names if name in options}


def _load_model(role: str, name: str, options: Mapping[str, Any], need: Need | None) -> Any:
    from transformers import AutoModelForCausalLM

    options = dict(options)
    if options.get("device_map") == "auto" and not torch.accelerator.is_available():
        # Nothing to place: plain loading spares accelerate's hooks on every module.
        del options["device_map"]
    try:
        model = AutoModelForCausalLM.from_pretrained(name, **options)
    except torch.OutOfMemoryError as error:
        if need is None:
            raise _load_error(role, name, "model", error) from error
        raise too_large([need], f"memory ran out while it was loaded ({error})") from error
    except Exception as error:
        raise _load_error(role, name, "model", error) from error
    refuse_offloaded(role, name, model, need)
    return model


def _load_error(role: str, name: str, what: str, error: Exception) -> ModelLoadError:
    name = str(name)
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.startswith((".", "~"))):
        return ModelLoadError(
            f"the {role}'s {what} could not be loaded: there is no folder {name!r}."
        )
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    remedy = (
        "Give a folder with a transformers model, or a hub id that this machine can reach or has "
        "in its cache (`hf download ID` fetches one)."
        if isinstance(error, OSError)
        else "Check the arguments for loading (dtype, device_map, quantization_config, ...)."
    )
    return ModelLoadError(
        f"the {role}'s {what} {name!r} could not be loaded: {cause.rstrip('.')}. {remedy}"
    )
