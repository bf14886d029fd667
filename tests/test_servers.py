"""Two inference servers write what two models in this process write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import FakeServer, Next
from test_backend import random_script, shape
from toy import EOS, PROMPTS, Pair, fresh_pair, pair, scripted_pair, token_id, vocabulary
from transformers import GenerationConfig

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder, ServerError
from foreal_core.backends.local.profile import profile_model
from foreal_core.cost import ModelProfile

DIALECTS = ("vllm", "vllm-generate", "sglang", "llama.cpp")
PROFILE = ModelProfile("tiny", 10, 2, 1, 24)


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


def settings(rng: random.Random) -> FoReaLConfig:
    return FoReaLConfig(
        lead_count=rng.choice([0, 1, 3, 8]),
        hit_threshold=rng.choice([0, 1, 2, 4]),
        lead_probability=rng.choice([0.0, 0.5, 1.0]),
        hit_window=rng.choice(["after_lead", "sentence"]),
        policy=rng.choice(["foreal", "even", "leader", "draft"]),
        stop=rng.choice([(), (" we add",)]),
        max_new_tokens=rng.choice([5, 40, 80]),
        seed=rng.randrange(1000),
        speculate=rng.choice([True, False]),
    )


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
        configs = [settings(rng) for _ in range(8)]
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


# -- the bill ------------------------------------------------------------------------------------


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


# -- sampling ------------------------------------------------------------------------------------


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


# -- faults --------------------------------------------------------------------------------------

HEALED = (
    *("429", "503", "500", "drop", "drop:1", "drop:3", "error:2", "cut:2", "lose:2", "lose:1"),
)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_goes_wrong_once_changes_no_text(dialect: str) -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT), (dialect, dialect)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        expected = shape(decoder.generate(" so", **CONFIG))
        for fault in HEALED if dialect == "vllm" else HEALED[3:]:
            for server in servers:
                server.faults = [fault]
                written = decoder.generate(" so", **CONFIG)
                assert shape(written) == expected, (fault, server is servers[0])
                retries = [counts["retries"] for counts in written.cost.servers.values()]
                assert not server.faults and sum(map(int, retries)) <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dialect", "fault", "said"),
    [
        ("vllm", "no ids", "gives no token ids"),
        ("sglang", "no ids", "no list of token ids"),
        ("llama.cpp", "no ids", "gives no token ids"),
        ("vllm", "more", "where 32 were asked for"),
        ("vllm", "other id", "serves another model"),
        ("vllm", "400", "HTTP 400: said 400"),
    ],
)
def test_a_server_that_does_something_else_is_named(dialect: str, fault: str, said: str) -> None:
    two = scripted_pair(LEADER, DRAFT)
    loop = {" so": " so"}
    with (
        two_servers(scripted(loop), scripted(loop), (dialect, dialect)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        servers[0].faults = [fault]
        with pytest.raises(ServerError, match=said) as caught:
            decoder.generate(" so", policy="leader", max_new_tokens=40)
        assert servers[0].url in str(caught.value)
        assert not caught.value.lost
        # The next call works.
        assert decoder.generate(" so", policy="leader", max_new_tokens=3).text == " so so so"


def test_a_server_that_is_gone_is_an_error_that_names_it_and_its_return_is_noticed() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, retries=1) as decoder,
    ):
        expected = shape(decoder.generate(" so", **CONFIG))
        servers[1].kill()
        with pytest.raises(ServerError, match="failed 2 times in a row") as caught:
            decoder.generate(" so", **CONFIG)
        assert caught.value.lost and caught.value.author == "draft"
        assert caught.value.cost is not None and caught.value.cost.servers["draft"]["requests"] == 2
        servers[1].start()
        assert shape(decoder.generate(" so", **CONFIG)) == expected
        servers[1].kill()
        servers[1].name = "another"
        servers[1].start()
        servers[1].faults = ["drop"]
        with pytest.raises(ServerError, match="came back as another"):
            decoder.generate(" so", **CONFIG)


def test_a_server_killed_in_mid_sentence_loses_and_doubles_nothing() -> None:
    """Restarted at once, and its client asks on from the last token."""
    two = scripted_pair(LEADER, DRAFT)
    rng = random.Random(11)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, retries=50) as decoder,
    ):
        expected = shape(decoder.generate(" so", **CONFIG))
        for _ in range(12):
            stream = decoder.stream(" so", **CONFIG)
            for _ in zip(range(rng.randrange(1, 20)), stream, strict=False):
                pass
            victim = rng.choice(servers)
            victim.kill()
            victim.start()
            for _ in stream:
                pass
            assert shape(stream.result) == expected


@pytest.mark.parametrize("survivor", ["leader", "draft"])
def test_the_one_that_is_left_goes_on_alone_and_the_bill_says_so(survivor: str) -> None:
    two = scripted_pair(LEADER, DRAFT)
    lost = "draft" if survivor == "leader" else "leader"
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, retries=0, on_server_lost=survivor) as decoder,
    ):
        servers[lost == "draft"].faults = ["drop:3"]
        written = decoder.generate(" so", **CONFIG)
        with pytest.raises(ServerError, match=f"the {survivor}'s server"):
            servers[survivor == "draft"].kill()
            decoder.generate(" so", **CONFIG)
    assert lost in written.authors
    assert written.cost.servers[lost]["lost"]
    assert not written.cost.servers[survivor]["lost"]
    assert written.warnings == (
        f"the {lost}'s server was lost: the {survivor} wrote the rest alone.",
    )
    [last] = [one.end for one in written.segments if one.reason == "server_lost"]
    assert set(written.authors[last:]) == {survivor}
    assert len(written.token_ids) == 30
    assert "".join(written.texts) == written.text


def test_a_row_that_no_tokenizer_knows_is_banned_and_the_token_asked_for_anew() -> None:
    """It may win a server's arg-max; in this process its logit is masked."""
    two = scripted_pair(LEADER, LEADER)
    unknown, script = len(vocabulary()), scripted(LEADER)

    def follows(ids: Sequence[int]) -> int:
        return unknown if ids[-1] == token_id(" x") else script(ids)

    with (
        two_servers(follows, follows, ("llama.cpp", "llama.cpp"), rows=unknown + 1) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        written = decoder.generate(" so", policy="leader", max_new_tokens=20)
    assert written.text == " we add x"  # the test's server writes the least id instead: an end
    assert written.finish_reason == "stop"


# -- ends ----------------------------------------------------------------------------------------


def test_cancelled_requests_leave_no_work_and_no_connection() -> None:
    loop = {" so": " so"}
    two = scripted_pair(loop, loop)
    rng = random.Random(2)
    with (
        two_servers(scripted(loop), scripted(loop)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        for server in servers:
            server.pause = lambda: asyncio.sleep(0.001)
        futures = [
            decoder.submit(" so", lead_count=3, max_new_tokens=rng.choice([20, 200]), seed=seed)
            for seed in range(24)
        ]
        cancelled = rng.sample(futures, 12)
        for future in cancelled:
            future.cancel()
        for future in futures:
            if future not in cancelled:
                future.result()
        decoder.check_integrity()
        for server in servers:
            server.pause = None
    assert all(server.open == 0 for server in servers)


def test_a_cancelled_request_ends_the_work_of_a_server_that_says_nothing() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        servers[0].faults = ["hang"]
        future = decoder.submit(" so", policy="leader")
        while not servers[0].asked:
            pass
        future.cancel()
        decoder.check_integrity()
        assert decoder.generate(" so", policy="leader", max_new_tokens=2).text == " we add"


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, timeout=0.2, retries=0) as decoder,
    ):
        servers[0].faults = ["hang"]
        with pytest.raises(ServerError, match="ReadTimeout"):
            decoder.generate(" so", policy="leader")


def test_connections_are_bounded_and_nobody_starves() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, max_connections=3) as decoder,
    ):
        futures = [decoder.submit(" so", **(CONFIG | {"seed": seed})) for seed in range(24)]
        assert {len(future.result().token_ids) for future in futures} == {30}
    assert all(1 <= server.most_open <= 3 for server in servers)


# -- connecting ----------------------------------------------------------------------------------


def test_connecting_says_what_is_wrong() -> None:
    two = scripted_pair(LEADER, DRAFT)
    tokenizer = two.tokenizer
    with two_servers(scripted(LEADER), scripted(DRAFT)) as servers:
        leader, draft = (server.url for server in servers)
        with pytest.raises(ConfigError, match="url='localhost:1'"):
            FoReaLDecoder.connect("localhost:1", draft, tokenizer=tokenizer)
        with pytest.raises(ConfigError, match="Did you mean 'retries'"):
            FoReaLDecoder.connect(leader, draft, tokenizer=tokenizer, retrys=1)
        with pytest.raises(ConfigError, match="on_server_lost='both'"):
            FoReaLDecoder.connect(leader, draft, tokenizer=tokenizer, on_server_lost="both")
        with pytest.raises(ServerError, match=r"has no model 'x'\. It serves 'm'"):
            FoReaLDecoder.connect(leader, draft, tokenizer=tokenizer, model="x")
        with pytest.raises(ConfigError, match="give tokenizer= a folder"):
            FoReaLDecoder.connect(leader, draft)
        with pytest.raises(ConfigError, match="max_context=513"):
            connect(servers, tokenizer, max_context=513)
        servers[1].faults = ["no ids"]
        with pytest.raises(ServerError, match=r"the draft's server .* gives no token ids"):
            FoReaLDecoder.connect(leader, draft, tokenizer=tokenizer, profile=PROFILE)
        servers[1].kill()
        with pytest.raises(ServerError, match=r"the draft's server .* the connection failed"):
            FoReaLDecoder.connect(leader, draft, tokenizer=tokenizer)


def test_a_key_is_sent_to_its_own_server_and_never_shown() -> None:
    two = scripted_pair(LEADER, DRAFT)
    keys = {"leader_kwargs": {"api_key": "one"}, "draft_kwargs": {"api_key": "other"}}
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer, **keys) as decoder,
    ):
        decoder.generate(" so", **CONFIG)
        assert set(servers[0].keys) == {"Bearer one"}
        assert set(servers[1].keys) == {"Bearer other"}


def test_settings_that_a_server_cannot_keep_are_refused_by_name() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT), ("vllm", "sglang")) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        with pytest.raises(ConfigError, match=r"repetition_penalty=1\.1"):
            decoder.generate(" so", repetition_penalty=1.1)
        with pytest.raises(ConfigError, match="policy='entropy'"):
            decoder.generate(" so", policy="entropy")
        with pytest.raises(ConfigError, match="json_schema"):
            decoder.generate(" so", json_schema={"type": "object"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a model's folder has beside its weights."""
    two = pair("llama")
    two.tokenizer.save_pretrained(tmp_path)
    two.leader.config.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=token_id(EOS), do_sample=True, top_k=7).save_pretrained(tmp_path)
    return tmp_path


def test_sizes_and_tokenizer_come_from_what_the_server_was_started_with(folder: Path) -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local,
    ):
        with pytest.raises(ConfigError, match="the sizes of the draft's model"):
            FoReaLDecoder.connect(servers[0].url, servers[1].url, tokenizer=str(folder))
        for server in servers:
            server.root = str(folder)
        with FoReaLDecoder.connect(servers[0].url, servers[1].url) as decoder:
            known = profile_model(pair("llama").leader, str(folder))
            assert list(decoder.profiles.values()) == [known, known]
            settings = decoder.generate(" so", max_new_tokens=1, sampling="model").cost.settings
            assert (settings["temperature"], settings["top_k"]) == (1.0, 7)
            assert decoder.models == {"leader": str(folder), "draft": str(folder)}
            assert shape(decoder.generate(" so", **CONFIG)) == shape(
                local.generate(" so", **CONFIG)
            )


def test_addresses_stand_for_models_wherever_a_pair_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from foreal_core.chat.pairs import DecoderSource
    from foreal_core.cli import main

    with two_servers(scripted(LEADER), scripted(DRAFT)) as servers:
        leader, draft = (server.url for server in servers)
        for server in servers:
            server.root = str(folder)
        given = {"server_kwargs": {"tokenizer": str(folder), "api_key": "secret"}}
        source = DecoderSource(leader, draft, given)
        assert source.get() is DecoderSource(leader, draft, given).get()
        assert source.get().generate(" so", **CONFIG).text
        assert "secret" not in str(source.identity)
        assert "Bearer secret" in servers[0].keys
        source.get().close()
        pair_options = ["--leader", leader, "--draft", draft, "--tokenizer", str(folder)]
        written = ["generate", " so", "--raw-prompt", "--max-new-tokens", "8", "--policy", "leader"]
        assert main([*written, "--json", *pair_options]) == 0
        assert json.loads(capsys.readouterr().out)["text"].startswith(" we add x is 1.")
        assert main([*written, *pair_options, "--dtype", "float32"]) != 0
        assert "servers have their models loaded" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="either both are addresses"):
            FoReaLDecoder.open(leader, str(folder))
        with pytest.raises(ConfigError, match="server_kwargs is for inference servers"):
            DecoderSource(str(folder), str(folder), given)


@pytest.mark.asyncio
async def test_it_connects_and_writes_inside_a_running_loop() -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        connect(servers, two.tokenizer) as decoder,
    ):
        written = await decoder.agenerate(" so", **CONFIG)
    assert len(written.token_ids) == 30
