"""What is refused, and how: OpenAI's shape, a fitting status, a sentence that says what to do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from served import MODEL, QUESTION, Served

from foreal_core import ConfigError, NonFiniteLogitsError, OutOfMemoryError
from foreal_core.serve.errors import of
from foreal_core.serve.options import ServerOptions

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def ask(**fields: Any) -> dict[str, Any]:
    return {"messages": QUESTION, **fields}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, ask(temperature=-1), 400, "temperature"),
        (CHAT, ask(max_tokens=0), 400, "max_tokens"),
        (CHAT, ask(lead_probability=2), 400, "lead_probability"),
        (CHAT, ask(policy="nobody"), 400, "policy"),
        (CHAT, ask(n=0), 400, "n"),
        (CHAT, ask(n=10**6), 400, "n"),
        (CHAT, ask(stop=""), 400, "stop"),
        (CHAT, ask(json_schema={"type": "object"}), 400, "json_schema"),
        (CHAT, ask(response_format={"type": "xml"}), 400, "response_format.type"),
        (CHAT, ask(response_format={"type": "json_schema"}), 400, "response_format.json_schema"),
        (CHAT, ask(functions=[{"name": "f"}]), 400, "functions"),
        (CHAT, ask(tools=[{"type": "web_search", "function": {"name": "f"}}]), 400, None),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, 400, "messages[0]"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None),
        (CHAT, {"messages": []}, 422, "messages"),
        (CHAT, {}, 422, "messages"),
        (CHAT, [], 422, None),
        (CHAT, ask(temperature="hot"), 422, "temperature"),
        (CHAT, ask(stop=[1]), 422, None),
        (CHAT, ask(tools=[{"type": "function", "function": {}}]), 422, "tools.0.function.name"),
        (TEXT, {"prompt": "a", "echo": True}, 400, "echo"),
        (TEXT, {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        (TEXT, {"prompt": "a", "best_of": 3}, 400, "best_of"),
        (TEXT, {"prompt": ""}, 400, None),
        (TEXT, {"prompt": [10**9]}, 400, None),
        (TEXT, {"prompt": {}}, 422, None),
        ("/tokenize", {}, 422, None),
    ],
)
def test_wrong_requests(served: Served, path: str, body: Any, status: int, param: Any) -> None:
    got, error = served.error(path, body)
    assert got == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["message"].endswith(".")
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"messages": [' + b"[" * 100_000])
def test_what_is_no_json(served: Served, body: bytes) -> None:
    answer = served.client.post(CHAT, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("stream", [False, True])
def test_overflow_has_the_words_that_clients_go_by(served: Served, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "a book " * 3000}], "stream": stream}
    status, error = served.error(CHAT, body)
    assert status == 400 and error["code"] == "context_length_exceeded"
    limit = served.decoder.max_context
    assert f"This model's maximum context length is {limit} tokens" in error["message"]
    assert "context_length_exceeded" in error["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize"])
def test_another_model(served: Served, path: str) -> None:
    status, error = served.error(path, ask(prompt="a", model="gpt-4o"))
    assert (status, error["code"]) == (404, "model_not_found") and MODEL in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/responses", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
    ],
)
def test_unknown_paths_and_methods(served: Served, method: str, path: str, status: int) -> None:
    answer = served.client.request(method, path)
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    if path == "/v1/responses":
        assert CHAT in message


def test_a_body_that_is_too_large(serve: Callable[..., Served], decoder: Any) -> None:
    own = serve(decoder, max_body=1000)
    large = json.dumps(ask(user="x" * 100_000)).encode()

    def pieces() -> Any:
        for start in range(0, len(large), 10_000):
            yield large[start : start + 10_000]

    for content in (large, pieces()):  # with a declared length, and without one
        answer = own.client.post(CHAT, content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    assert own.chat(max_tokens=1)  # on the same connection


def test_keys(serve: Callable[..., Served], decoder: Any) -> None:
    own = serve(decoder, api_keys=("sesame", "other"))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic sesame"},
        {"authorization": "Bearer sesame2"},
        {"authorization": "Bearer \xe9"},
    ):
        for path in (CHAT, "/v1/models", "/metrics", "/v1/nothing"):
            raw = [(name, value.encode("latin-1")) for name, value in headers.items()]
            answer = own.client.post(path, headers=raw)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "invalid_api_key"
    for key in ("sesame", "other"):
        fields = {"json": ask(max_tokens=1), "headers": {"authorization": f"Bearer {key}"}}
        assert own.client.post(CHAT, **fields).status_code == 200
    assert own.client.get("/health").status_code == 200
    assert own.client.get("/").status_code == 200
    named = {"authorization": "Bearer sesame", "host": "pair.example"}
    assert own.client.get("/v1/models", headers=named).status_code == 200


def test_without_a_key_only_this_machine_is_served(
    serve: Callable[..., Served], decoder: Any
) -> None:
    for host in ("0.0.0.0", "192.168.0.3", "pair.example", ""):
        with pytest.raises(ConfigError, match="API key"):
            ServerOptions(host=host)
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"):
        ServerOptions(host=host)
    own = serve(decoder, allowed_hosts=("pair.internal",))
    for host, status in (
        ("localhost:1", 200),
        ("[::1]:80", 200),
        ("pair.internal", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ):
        assert own.client.get("/v1/models", headers={"host": host}).status_code == status, host


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"keep_alive": 30},
        {"api_keys": ("",)},
        {"api_keys": ("a b\n",)},
        {"reasoning": "thoughts"},
        {"max_queue": -1},
        {"request_timeout": 0},
        {"defaults": {"temperature": -1}},
    ],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServerOptions(**wrong)


def test_other_sites_may_not_call_unless_named(serve: Callable[..., Served], decoder: Any) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    headers = {"origin": "https://a.example"}
    closed = serve(decoder)
    assert closed.client.options(CHAT, headers=asked).status_code == 405
    assert (
        "access-control-allow-origin" not in closed.client.get("/health", headers=headers).headers
    )
    opened = serve(decoder, cors_origins=("https://a.example",))
    allowed = opened.client.options(CHAT, headers=asked)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    refused = opened.client.post(CHAT, json={}, headers=headers)
    assert refused.headers["access-control-allow-origin"] == "https://a.example"


def test_prompts_stay_out_of_the_log(
    serve: Callable[..., Served], decoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = [{"role": "user", "content": "sesame-4711"}]

    def provoke(own: Served) -> None:
        own.chat(secret, max_tokens=2)
        own.stream(secret, max_tokens=2)
        own.error(CHAT, {"messages": secret, "temperature": -1})
        own.error(CHAT, {"messages": secret, "stop": [1]})
        own.error(CHAT, {"messages": [*secret, {"role": "sesame-4711"}]})

    provoke(serve(decoder))
    ours = [record for record in caplog.records if record.name.startswith("foreal_core")]
    assert ours and "sesame-4711" not in caplog.text
    provoke(serve(decoder, log_prompts=True))
    assert "sesame-4711" in caplog.text


def test_what_no_request_can_mend_is_not_repeated() -> None:
    memory = of(OutOfMemoryError("too long"))
    assert memory.status == 500 and memory.headers["x-should-retry"] == "false"
    broken = of(NonFiniteLogitsError("NaN"))
    assert (broken.status, broken.message) == (500, "NaN")
    unknown = of(KeyError("secret"))
    assert unknown.status == 500 and "secret" not in unknown.message


def test_requests_keep_their_id(served: Served) -> None:
    for given, kept in (("my-id.1", True), ("a b", False), ("x" * 200, False)):
        answer = served.client.get("/health", headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) == kept


def test_model_list(served: Served) -> None:
    (model,) = served.client.get("/v1/models").json()["data"]
    assert model["id"] == MODEL and model["max_model_len"] == served.decoder.max_context
    assert served.client.get(f"/v1/models/{MODEL}").json() == model
    assert "/" not in json.dumps(model["foreal"]["models"])


def test_tokenize(served: Served) -> None:
    decoder = served.decoder
    answer = served.post("/tokenize", {"prompt": "Kim has 3", "return_token_strs": True}).json()
    ids = decoder.encode("Kim has 3")
    assert answer["tokens"] == ids and answer["count"] == len(ids) == len(answer["token_strs"])
    assert answer["max_model_len"] == decoder.max_context
    chat = served.post("/tokenize", {"messages": QUESTION}).json()
    assert chat["tokens"] == decoder.encode(messages=QUESTION)
    long = served.post("/tokenize", {"prompt": "a book " * 20_000}).json()
    assert long["count"] > decoder.max_context


@pytest.mark.parametrize("stream", [False, True])
def test_completions(served: Served, stream: bool) -> None:
    decoder, prompt = served.decoder, "Kim has 3 books."
    fields: dict[str, Any] = {"max_tokens": 12, "seed": 4}
    alone = decoder.generate(prompt, max_new_tokens=12, seed=4)
    for given in (prompt, decoder.encode(prompt)):
        body = {"prompt": given, "stream": stream, **fields}
        answer = served.post(TEXT, body)
        if not stream:
            (choice,) = answer.json()["choices"]
            assert (choice["text"], choice["finish_reason"]) == (alone.text, "length")
            continue
        parts = [json.loads(one) for one in datas(answer)[:-1]]
        texts = [choice["text"] for part in parts for choice in part["choices"]]
        assert "".join(texts) == alone.text and {part["object"] for part in parts} == {
            "text_completion"
        }
        assert parts[-1]["choices"][0]["finish_reason"] == "length"


def datas(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]


def test_several_prompts(served: Served) -> None:
    body = {"prompt": ["Kim has", "Tom"], "n": 2, "max_tokens": 4, "seed": 4}
    answer = served.post(TEXT, body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    prompts = [choice["foreal"]["prompt_tokens"] for choice in answer["choices"]]
    assert answer["usage"]["prompt_tokens"] == prompts[0] + prompts[2]
