"""Connecting to two inference servers: what is refused, what is learnt from them, where their
addresses stand for models."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from server_pairs import CONFIG, DRAFT, LEADER, PROFILE, connect, scripted, two_servers
from servers import FakeServer
from span_requests import shape
from toy import EOS, pair, scripted_pair, token_id, vocabulary
from transformers import GenerationConfig

from foreal_core import ConfigError, FoReaLDecoder, ServerError
from foreal_core.backends.local.profile import profile_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a model's folder has beside its weights."""
    two = pair("llama")
    two.tokenizer.save_pretrained(tmp_path)
    two.leader.config.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=token_id(EOS), do_sample=True, top_k=7).save_pretrained(tmp_path)
    return tmp_path


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


def test_sizes_and_tokenizer_come_from_what_the_server_was_started_with(folder: Path) -> None:
    two = scripted_pair(LEADER, DRAFT)
    with (
        two_servers(scripted(LEADER), scripted(DRAFT)) as servers,
        FoReaLDecoder(two.leader, two.draft, two.tokenizer) as local,
    ):
        with FoReaLDecoder.connect(*(s.url for s in servers), tokenizer=str(folder)) as decoder:
            assert [one.known for one in decoder.profiles.values()] == [True, False]
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
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
        monkeypatch.setenv("FOREAL_SERVER_API_KEY", "of the servers")
        assert main([*written, "--json", *pair_options]) == 0
        assert servers[0].keys[-1] == servers[1].keys[-1] == "Bearer of the servers"
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


def test_certificates_are_checked_as_httpx_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = _certificate(tmp_path)
    two = scripted_pair(LEADER, DRAFT)
    ends, rows = [token_id(EOS)], len(vocabulary())
    with (
        FakeServer("vllm", scripted(LEADER), ends=ends, rows=rows, tls=tls) as leader,
        FakeServer("vllm", scripted(DRAFT), ends=ends, rows=rows, tls=tls) as draft,
    ):
        servers, trusted = [leader, draft], str(tmp_path / "cert.pem")
        with pytest.raises(ServerError, match=r"https://127.* CERTIFICATE_VERIFY_FAILED"):
            connect(servers, two.tokenizer)
        for verify in (trusted, ssl.create_default_context(cafile=trusted), False):
            with connect(servers, two.tokenizer, verify=verify) as decoder:
                assert decoder.generate(" so", policy="leader", max_new_tokens=2).text == " we add"
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        with connect(servers, two.tokenizer) as decoder:
            assert decoder.generate(" so", policy="draft", max_new_tokens=2).text == " we add"


def _certificate(folder: Path) -> ssl.SSLContext:
    """A new one for this machine, signed by itself."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl")
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    subprocess.run([openssl, "req", "-x509", *kind, *names, *files], check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
