"""Loads models and tokenizers through transformers; errors name what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foreal_core.errors import ModelLoadError
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
    common: Mapping[str, Any],
    leader_kwargs: Mapping[str, Any],
    draft_kwargs: Mapping[str, Any],
) -> LoadedPair:
    """Loads both; single kwargs win over common ones.

    Raises:
        ModelLoadError: names the model and the cause; a pair that does not fit its devices is told
            how much it needs.
    """
    leader_options = {**common, **leader_kwargs}
    draft_options = {**common, **draft_kwargs}
    # What is small first: a missing model or one too large is found before gigabytes are read.
    refuse_unless_a_model("leader", leader, leader_options)
    refuse_unless_a_model("draft", draft, draft_options)
    tokenizer = _load_tokenizer("leader", leader, leader_options)
    draft_tokenizer = _load_tokenizer("draft", draft, draft_options)
    leader_need = _need("leader", leader, leader_options)
    draft_need = _need("draft", draft, draft_options)
    needs = [need for need in (leader_need, draft_need) if need is not None]
    refuse_unless_they_fit(needs)
    places = whole_places(needs)
    for role, options in (("leader", leader_options), ("draft", draft_options)):
        if role in places:
            options["device_map"] = {"": places[role]}
    return LoadedPair(
        leader=_load_model("leader", leader, leader_options, leader_need),
        draft=_load_model("draft", draft, draft_options, draft_need),
        tokenizer=tokenizer,
        draft_tokenizer=draft_tokenizer,
    )


def end_of_sequence_ids(model: Any, tokenizer: Any) -> set[int]:
    """The ids that end the model's text, as transformers' `generate` sees them."""
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return set(ids) if isinstance(ids, list | tuple | set) else {int(ids)}
    return set()


def model_name(model: Any, role: str) -> str:
    """The model's id or folder, or its role where it has none."""
    return getattr(model.config, "_name_or_path", "") or role


def _load_tokenizer(role: str, name: str, options: Mapping[str, Any]) -> Any:
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
