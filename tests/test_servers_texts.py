"""Two inference servers write what two models in this process write: texts, the bill, draws."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from server_pairs import CONFIG, DIALECTS, DRAFT, LEADER, computed, connect, scripted, two_servers
from span_requests import random_script, shape, span_settings
from toy import PROMPTS, Pair, fresh_pair, pair, scripted_pair, token_id

from foreal_core import FoReaLConfig, FoReaLDecoder


@pytest.mark.parametrize("dialect", DIALECTS)
def test_servers_write_what_two_models_here_write(dialect: str) -> None:
    """Scripted models; many settings at once."""
    rng = random.Random(DIALECTS.index(dialect))
    leader = random_script(rng)
    draft = random_script(rng, leader)
    two = scripted_pair(leader, draft)
    with (
        two_servers(scripted(leader), scripted(draft), (dialect, dialect)) as servers,
        FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local,
        connect(servers, two.tokenizer) as remote,
    ):
        configs = [span_settings(rng) for _ in range(8)]
        futures = [remote.submit(" so", config) for config in configs]
        for config, future in zip(configs, futures, strict=True):
            assert shape(future.result()) == shape(local.generate(" so", config))
        remote.check_integrity()
    assert all(server.open == 0 for server in servers)


def test_real_models_behind_two_dialects_write_their_own_text() -> None:
    """Tiny transformers models, half characters and marks included."""
    two: Pair = fresh_pair("llama")
    plain = pair("llama")
    rng = random.Random(7)
    with (
        two_servers(computed(plain.leader), computed(plain.draft), ("vllm", "sglang")) as servers,
        FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local,
        connect(servers, two.tokenizer) as remote,
    ):
        configs = [
            FoReaLConfig(
                lead_count=rng.choice([1, 4]),
                hit_threshold=rng.choice([1, 2]),
                lead_probability=rng.choice([0.4, 1.0]),
                policy=rng.choice(["foreal", "even"]),
                max_new_tokens=16,
                seed=rng.randrange(1000),
            )
            for _ in range(12)
        ]
        asked = list(zip(configs, PROMPTS * 2, strict=True))
        futures = [remote.submit(prompt, config) for config, prompt in asked]
        for (config, prompt), future in zip(asked, futures, strict=True):
            assert shape(future.result()) == shape(local.generate(prompt, config))
    assert all(server.open == 0 for server in servers)


def test_sglang_may_send_new_ids_alone() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT), ("sglang", "sglang")) as servers,
        FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local,
        connect(servers, two.tokenizer) as remote,
    ):
        for server in servers:
            server.incremental = True
        expected = shape(local.generate(" so", **CONFIG))
        assert shape(remote.generate(" so", **CONFIG)) == expected
        servers[0].faults = ["lose:2"]
        written = remote.generate(" so", **CONFIG)
        assert shape(written) == expected
        assert written.cost.servers["leader"]["retries"] == 1


def test_the_bill_has_the_servers_own_counts() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        cost = decoder.generate(" so", **CONFIG).cost
    for author, server in zip(("leader", "draft"), servers, strict=True):
        counts = cost.servers[author]
        assert counts["requests"] == len(server.asked)
        assert counts["prompt_tokens"] == sum(len(body["prompt"]) for body in server.asked)
        assert counts["completion_tokens"] >= getattr(cost, f"{author}_tokens")
        assert counts["retries"] == 0
        assert not counts["lost"]
        assert counts["seconds"] > 0
        assert counts["cached_tokens"] is None or (
            0 <= counts["cached_tokens"] < counts["counted_tokens"] <= counts["prompt_tokens"]
        )
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local:
        assert local.generate(" so", **CONFIG).cost.servers == {}


def test_a_span_has_a_seed_of_its_own_and_agreement_counts_first_choices() -> None:
    """Drawn tokens are the server's affair; the hit test compares what would be greedy."""
    two = scripted_pair(LEADER, LEADER)

    def draws(ids: Sequence[int], seed: int) -> int:
        return token_id(" the") if (seed + len(ids)) % 3 else scripted(LEADER)(ids)

    with (
        two_servers(scripted(LEADER), scripted(LEADER), ("vllm", "llama.cpp")) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        for server in servers:
            server.draws = draws
        config = FoReaLConfig(**CONFIG).with_overrides(temperature=0.7, lead_probability=1.0)
        texts = [decoder.generate(" so", config) for _ in range(2)]
        other = decoder.generate(" so", config, seed=4)
        seeds = [body["seed"] for server in servers for body in server.asked if body["seed"]]
    assert texts[0].token_ids == texts[1].token_ids
    assert other.token_ids != texts[0].token_ids
    assert all(run is None or run > 0 for run in texts[0].hit_runs)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) > 2
