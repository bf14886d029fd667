"""Which dialect an inference server speaks, and what it serves, by asking it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreal_core.backends.servers.client import ServerClient
from foreal_core.backends.servers.dialects import Dialect, Facts, Misfit
from foreal_core.backends.servers.llama import LlamaServer
from foreal_core.backends.servers.options import DIALECTS
from foreal_core.backends.servers.sglang import SGLang
from foreal_core.backends.servers.vllm import Completions, Generate

_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
_SPOKEN: dict[str, type[Dialect]] = {
    "vllm": Completions,
    "vllm-generate": Generate,
    "sglang": SGLang,
    "llama.cpp": LlamaServer,
}


def dialect_of(facts: Facts) -> Dialect:
    """How to talk to a server."""
    return _SPOKEN[facts.dialect]()


async def facts_of(client: ServerClient) -> Facts:
    """Asks a server for what it is.

    Raises:
        Fault, Misfit: it does not answer, or is none of those known, or has no such model.
    """
    options = client.options
    listed = await client.get("/v1/models")
    models = listed.get("data") if listed is not None else None
    if not isinstance(models, list) or not models:
        raise Misfit("names no model under /v1/models: it is no server of vLLM, SGLang, llama.cpp")
    names = [str(one.get("id")) for one in models]
    if options.model is not None and options.model not in names:
        raise Misfit(f"has no model {options.model!r}. It serves {', '.join(map(repr, names))}")
    found = models[0 if options.model is None else names.index(options.model)]
    dialect = options.dialect or _OWNERS.get(str(found.get("owned_by")).lower())
    if dialect is None:
        raise Misfit(
            f"is owned by {found.get('owned_by')!r}, which names no dialect: give dialect= "
            f"({', '.join(DIALECTS)})"
        )
    if dialect == "llama.cpp":
        return await _llama_facts(client, found)
    return Facts(
        dialect=dialect,
        model=str(found.get("id")),
        source=found.get("root") or str(found.get("id")),
        max_context=_count(found.get("max_model_len")),
    )


async def _llama_facts(client: ServerClient, found: Mapping[str, Any]) -> Facts:
    """The context is divided among the slots, so that of one counts."""
    meta = found.get("meta") or {}
    props = await client.get("/props") or {}
    settings = props.get("default_generation_settings") or {}
    return Facts(
        dialect="llama.cpp",
        model=str(found.get("id")),
        source=props.get("model_path") or str(found.get("id")),
        max_context=_count(settings.get("n_ctx")) or _count(meta.get("n_ctx")),
        vocab_size=_count(meta.get("n_vocab")),
        slots=_count(props.get("total_slots")),
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
