"""Two of the tests' inference servers, and a decoder that asks them: what every test of the pair
behind servers shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from servers import FakeServer, Next
from toy import EOS, token_id, vocabulary

from foreal_core import FoReaLDecoder
from foreal_core.cost import ModelProfile

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
