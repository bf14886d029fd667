"""Two of the tests' inference servers, and a decoder that asks them: what every test of the pair
behind servers shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from servers import FakeServer, Next
from toy import EOS, token_id, vocabulary
from transformers import AutoModelForCausalLM

from foreal_core import FoReaLDecoder
from foreal_core.cost import ModelProfile
from foreal_core.demo import pair_paths

DIALECTS = ("vllm", "vllm-generate", "sglang", "llama.cpp")
PROFILE = ModelProfile("tiny", 10, 2, 1, 24)

LEADER = {" so": " we", " we": " add", " add": " x", " x": " is", " is": " 1", " 1": "."}
LEADER |= {".": " the", " the": " sum", " sum": " is", " =": " so"}
DRAFT = LEADER | {" the": " x", " x": " =", " =": " 1"}
CONFIG: dict[str, Any] = {
    "temperature": 0.0,
    "lead_count": 2,
    "hit_threshold": 2,
    "lead_probability": 0.6,
    "max_new_tokens": 30,
    "seed": 3,
}


def scripted(script: Mapping[str, str]) -> Next:
    ids = {token_id(a): token_id(b) for a, b in script.items()}
    return lambda text: ids.get(text[-1], token_id(EOS))


def computed(model: Any) -> Next:
    """A model's greedy choice, computed anew each time."""

    @torch.no_grad()
    def follows(text: Sequence[int]) -> int:
        return int(model(torch.tensor([list(text)])).logits[0, -1].argmax())

    return follows


@contextlib.contextmanager
def two_servers(
    leader: Next,
    draft: Next,
    dialects: Sequence[str] = ("vllm", "vllm"),
    rows: int = len(vocabulary()),
) -> Iterator[tuple[FakeServer, FakeServer]]:
    ends = [token_id(EOS)]
    with (
        FakeServer(dialects[0], leader, ends=ends, rows=rows) as one,
        FakeServer(dialects[1], draft, ends=ends, rows=rows) as other,
    ):
        yield one, other


def connect(servers: Sequence[FakeServer], tokenizer: Any, **arguments: Any) -> FoReaLDecoder:
    given = {"retries": 3, "profile": PROFILE, "timeout": 60.0} | arguments
    names = ("leader_kwargs", "draft_kwargs")
    for name, server in zip(names, servers, strict=True):
        if server.dialect == "vllm-generate":
            given[name] = {"dialect": "vllm-generate", **given.get(name, {})}
    decoder = FoReaLDecoder.connect(servers[0].url, servers[1].url, tokenizer=tokenizer, **given)
    for server in servers:
        server.asked.clear()
    return decoder


@cache
def loaded(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@contextlib.contextmanager
def bundled_servers(*, known: bool = True) -> Iterator[list[str]]:
    """The bundled pair behind two servers, which say what they were started with if it is to be
    `known`. Their addresses."""
    with contextlib.ExitStack() as stack:
        urls = []
        for folder in map(str, pair_paths()):
            model = loaded(folder)
            ends, rows = [model.config.eos_token_id], model.config.vocab_size
            server = FakeServer("vllm", computed(model), ends=ends, rows=rows)
            stack.enter_context(server)
            server.root = folder if known else "/elsewhere/model"
            server.context = model.config.max_position_embeddings
            urls.append(server.url)
        yield urls
