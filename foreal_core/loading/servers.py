"""Two inference servers become an engine: asked for what they are, with their tokenizer."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from foreal_core.backends.servers.backend import Server, ServersBackend
from foreal_core.backends.servers.client import ServerClient
from foreal_core.backends.servers.dialects import Ask, Facts, Fault, Misfit
from foreal_core.backends.servers.facts import dialect_of, facts_of
from foreal_core.backends.servers.options import ServerOptions
from foreal_core.config import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.engine.spans import SpanEngine
from foreal_core.errors import ConfigError, FoReaLError, ServerError
from foreal_core.events import DRAFT, LEADER, Author
from foreal_core.loading.assemble import Assembled, count_of, count_or_none
from foreal_core.loading.pair import load_tokenizer
from foreal_core.loading.recommended import recommended_sampling
from foreal_core.text.pair_tokenizer import PairTokenizer

ON_SERVER_LOST = ("error", "draft", "leader")
_LONGEST_UNKNOWN = 4096
_TRIED = 2  # tokens

T = TypeVar("T")


@dataclass(frozen=True)
class _Model:
    """One server's model: its tokenizer, rows, ends and sizes, and how its authors sample."""

    tokenizer: Any
    rows: int
    ends: frozenset[int]
    profile: ModelProfile
    recommended: Mapping[str, float]


def assemble_servers(
    named: Mapping[Author, tuple[str, Mapping[str, Any] | None]],
    common: Mapping[str, Any],
    *,
    tokenizer: Any,
    draft_tokenizer: Any,
    max_batch_size: int,
    max_context: int | None,
    max_queue: int | None,
    on_server_lost: str,
) -> Assembled:
    """An engine over two servers, each named by its address and options of its own, with those
    that both have; arguments and errors are `FoReaLDecoder.connect`'s."""
    options = {
        author: ServerOptions.of(url, {**common, **(own or {})})
        for author, (url, own) in named.items()
    }
    if on_server_lost not in ON_SERVER_LOST:
        raise ConfigError(
            f"on_server_lost={on_server_lost!r} is not allowed: one of "
            f"{', '.join(map(repr, ON_SERVER_LOST))}."
        )
    max_batch_size = count_of("max_batch_size", max_batch_size)
    max_queue = count_or_none("max_queue", max_queue)
    max_context = count_or_none("max_context", max_context)
    found = _in_a_loop(_asked(options, _facts))
    if draft_tokenizer is None and tokenizer is None:
        draft_tokenizer = found[DRAFT].source
    given = {LEADER: tokenizer or found[LEADER].source, DRAFT: draft_tokenizer}
    leader = _model(LEADER, given[LEADER], found[LEADER], options[LEADER], None)
    draft = _model(DRAFT, given[DRAFT], found[DRAFT], options[DRAFT], leader)
    pair = PairTokenizer(
        leader.tokenizer,
        None if draft.tokenizer is leader.tokenizer else draft.tokenizer,
        leader_vocab_size=leader.rows,
        draft_vocab_size=draft.rows,
        leader_eos=leader.ends,
        draft_eos=draft.ends,
    )
    tried = min(pair.leader_eos, default=0)
    _in_a_loop(_asked(options, partial(_tries, found, tried)))
    servers = {author: Server(author, one, found[author]) for author, one in options.items()}
    limits = [facts.max_context for facts in found.values() if facts.max_context is not None]
    takes = min(limits, default=_LONGEST_UNKNOWN)
    if max_context is not None and max_context > takes:
        raise ConfigError(
            f"max_context={max_context} is not allowed: the servers take at most {takes} tokens."
        )
    backend = ServersBackend(
        servers,
        pair,
        {LEADER: leader.rows, DRAFT: draft.rows},
        {LEADER: leader.profile, DRAFT: draft.profile},
        max_context or takes,
    )
    survivor = next((author for author in (LEADER, DRAFT) if author == on_server_lost), None)
    engine = SpanEngine(
        backend, pair, max_batch_size=max_batch_size, max_queue=max_queue, survivor=survivor
    )
    return Assembled(engine, pair, leader.rows, leader.recommended)


# -- asking --------------------------------------------------------------------------------------


async def _asked(
    options: Mapping[Author, ServerOptions],
    question: Callable[[Author, ServerClient], Awaitable[T]],
) -> dict[Author, T]:
    """Both servers' answers to one question."""
    answers: dict[Author, T] = {}
    for author, one in options.items():
        client = ServerClient(one)
        try:
            answers[author] = await question(author, client)
        except (Fault, Misfit) as error:
            text = f"the {author}'s server {one.url} {str(error).rstrip('.')}."
            raise ServerError(text, author, isinstance(error, Fault)) from error
        finally:
            await client.aclose()
    return answers


async def _facts(author: Author, client: ServerClient) -> Facts:
    return await facts_of(client)


async def _tries(
    found: Mapping[Author, Facts], token: int, author: Author, client: ServerClient
) -> None:
    """Lets a server write two tokens: fields that it does not know it ignores in silence."""
    facts, dialect = found[author], dialect_of(found[author])
    ask = Ask(facts.model, [token], _TRIED, (), FoReaLConfig(temperature=1.0), 0)
    have = 0
    async for message in client.messages(dialect.path, dialect.body(ask), streams=dialect.streams):
        piece = dialect.piece(message, ask, have)
        have += len(piece.ids)
        if piece.ids and (
            piece.first_choices is None or len(piece.first_choices) != len(piece.ids)
        ):
            raise Misfit("gives no log-probabilities of what it writes")
    if not have or have > _TRIED:
        raise Misfit(f"wrote {have} tokens where {_TRIED} were asked for")


def _in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, whether or not the caller's thread has a loop running."""
    with ThreadPoolExecutor(1, thread_name_prefix="foreal-connect") as pool:
        return pool.submit(asyncio.run, work).result()


# -- models --------------------------------------------------------------------------------------


def _model(
    author: Author, given: Any, facts: Facts, options: ServerOptions, shared: _Model | None
) -> _Model:
    """What is known of a server's model. `given` is a tokenizer, or a folder or hub id; without
    one it is that of `shared`."""
    if given is None:
        assert shared is not None
        tokenizer = shared.tokenizer
    elif isinstance(given, str | Path):
        try:
            tokenizer = load_tokenizer(author, str(given), {})
        except FoReaLError as error:
            name = "tokenizer" if author == LEADER else "draft_tokenizer"
            raise ConfigError(
                f"{error} The {author}'s server was started with it; give {name}= a folder or hub "
                "id that can be read here."
            ) from error
    else:
        tokenizer = given
    config = _config(facts.source, None if given is None else getattr(tokenizer, "name_or_path", 0))
    rows = facts.vocab_size or (_rows(config) if config is not None else None) or len(tokenizer)
    generation = _generation(config)
    return _Model(
        tokenizer=tokenizer,
        rows=rows,
        ends=_ends(generation, config, tokenizer),
        profile=options.profile or _profile(config, facts),
        recommended=recommended_sampling(SimpleNamespace(generation_config=generation)),
    )


def _config(*sources: Any) -> Any:
    """The first model configuration that can be read here; None where there is none."""
    from transformers import AutoConfig

    for source in sources:
        if not isinstance(source, str) or not source:
            continue
        if Path(source).is_absolute() and not Path(source).is_dir():
            continue  # of the server's machine
        try:
            return AutoConfig.from_pretrained(source)
        except Exception:
            continue  # no model here
    return None


def _rows(config: Any) -> int | None:
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return rows if isinstance(rows, int) else None


def _generation(config: Any) -> Any:
    """What stands beside a configuration in generation_config.json; None where there is none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(config.name_or_path)
    except Exception:
        return None


def _ends(*holders: Any) -> frozenset[int]:
    """The ids that end the model's text, as transformers and the servers see them."""
    for holder in holders:
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list | tuple | set) else [int(ids)])
    return frozenset()


def _profile(config: Any, facts: Facts) -> ModelProfile:
    """Sizes by a configuration, without weights; NaN what it does not tell."""
    import torch
    from transformers import AutoModelForCausalLM

    from foreal_core.backends.local.profile import profile_model

    name = facts.source or facts.model
    if config is None:
        return ModelProfile.unknown(name)
    plain = copy.deepcopy(config)
    quantized = getattr(plain, "quantization_config", None) is not None
    if quantized:
        del plain.quantization_config
    try:
        with torch.device("meta"):
            found = profile_model(AutoModelForCausalLM.from_config(plain), name)
    except Exception:  # a model of its own kind
        return ModelProfile.unknown(name)
    # A GGUF file's types and those of a quantised model are not those of the configuration.
    if quantized or facts.dialect == "llama.cpp":
        return replace(found, weight_bytes=math.nan)
    return found
