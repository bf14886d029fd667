"""Chats over HTTP: the same text as the decoder's, whole and streamed, in the form that every
client takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from scripted import OPTIONS_TEMPLATE, TOOLS_TEMPLATE, ScriptedDecoder, pair_with_tools
from served import MODEL, QUESTION, Served

from foreal_core import FoReaLDecoder
from foreal_core.text.thinking import THINK_END


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.8}, {"lead_probability": 1.0}])
def test_text_is_the_decoders(served: Served, fields: dict[str, Any]) -> None:
    thinking, answer = served.both(seed=7, **fields)
    alone = served.decoder.generate(messages=QUESTION, seed=7, **fields)
    assert f"{thinking}{THINK_END}\n\n{answer}" == alone.text.strip()


def test_whole_answer_has_all_that_clients_look_for(served: Served) -> None:
    answer = served.chat(max_tokens=40, seed=1)
    assert answer["object"] == "chat.completion" and answer["model"] == MODEL
    assert isinstance(answer["id"], str) and isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert choice["index"] == 0 and choice["message"]["role"] == "assistant"
    usage, record = answer["usage"], answer["foreal"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    details = usage["completion_tokens_details"]
    assert details["leader_tokens"] + details["draft_tokens"] == usage["completion_tokens"]
    assert record["leader_tokens"] == details["leader_tokens"] and record["flops"]["total"] > 0


def test_chunks_have_all_that_clients_look_for(served: Served) -> None:
    parts = served.stream(max_tokens=40, seed=1)
    assert len({(part["id"], part["created"], part["model"]) for part in parts}) == 1
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    choices = [choice for part in parts for choice in part["choices"]]
    assert {choice["index"] for choice in choices} == {0}
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0]["role"] == "assistant" and not any("role" in one for one in deltas[1:])
    assert not any(value is None for delta in deltas for value in delta.values())
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1) and reasons[-1] == "length"


def test_usage_comes_once_and_only_when_asked(served: Served) -> None:
    parts = served.stream(max_tokens=30, seed=1, stream_options={"include_usage": True})
    assert [part for part in parts if part.get("usage")] == parts[-1:]
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"] == served.chat(max_tokens=30, seed=1)["usage"]
    unasked = served.stream(max_tokens=30, seed=1)
    assert not any("usage" in part for part in unasked)
    assert all(part["choices"] for part in unasked)


def test_usage_tells_what_was_read_before(serve: Callable[..., Served]) -> None:
    with FoReaLDecoder.demo() as decoder:
        one = serve(decoder)
        asked = {"max_tokens": 2, "seed": 1}
        first, second = (one.chat(n=2, **asked)["usage"] for _ in range(2))
        *_, last = one.stream(stream_options={"include_usage": True}, **asked)
    # The choices share one prompt, which the first of them read.
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"] == {"cached_tokens": second["prompt_tokens"] - 1}
    assert last["usage"]["prompt_tokens_details"] == second["prompt_tokens_details"]


def test_the_last_chunk_carries_the_cost(served: Served) -> None:
    parts = served.stream(max_tokens=30, seed=1)
    assert [part for part in parts if "foreal" in part] == parts[-1:]
    assert parts[-1]["foreal"]["completion_tokens"] == 30


def test_streams_are_chunked_and_not_kept(served: Served) -> None:
    body = {"messages": QUESTION, "stream": True, "max_tokens": 2}
    answer = served.post("/v1/chat/completions", body)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_is_in_exactly_one_field(
    serve: Callable[..., Served], decoder: Any, field: str
) -> None:
    own = serve(decoder, reasoning=field)
    message = own.chat(seed=7)["choices"][0]["message"]
    assert set(message) == {"role", "content", field}
    fields = {name for part in own.stream(seed=7) for c in part["choices"] for name in c["delta"]}
    assert fields == {"role", "content", field}


def test_thinking_inside_the_answer(serve: Callable[..., Served], decoder: Any) -> None:
    own = serve(decoder, reasoning="content")
    text = decoder.generate(messages=QUESTION, seed=7).text
    thinking, _, answer = text.partition(THINK_END)
    expected = f"<think>\n{thinking.strip()}\n</think>\n\n{answer.strip()}"
    assert own.both(seed=7) == ("", expected)
    cut = own.both(seed=7, max_tokens=10)[1]
    assert cut.startswith("<think>\n") and cut.endswith("\n</think>")


def test_a_budget_used_up_by_thinking_is_length_and_empty(served: Served) -> None:
    choice = served.chat(max_tokens=5, seed=7)["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"]


def test_either_name_of_the_token_limit(served: Served) -> None:
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        assert served.chat(**{name: 3})["usage"]["completion_tokens"] == 3
    status, error = served.error(
        "/v1/chat/completions",
        {"messages": QUESTION, "max_tokens": 3, "max_completion_tokens": 4},
    )
    assert status == 400 and error["param"] == "max_completion_tokens"


def test_without_a_limit_the_answer_may_fill_the_context(served: Served) -> None:
    settings = served.chat(seed=7)["foreal"]["settings"]
    assert settings["max_new_tokens"] == served.decoder.max_context


def test_who_names_no_temperature_gets_what_the_leader_recommends(
    serve: Callable[..., Served], decoder: Any
) -> None:
    def source(own: Served, **fields: Any) -> str:
        return own.chat(max_tokens=1, **fields)["foreal"]["settings"]["sampling"]

    own = serve(decoder)
    assert source(own) == "model" and source(own, temperature=0) == "given"
    assert source(serve(decoder, defaults={"temperature": 0.5})) == "given"


def test_each_choice_has_a_seed_of_its_own(served: Served) -> None:
    fields = {"seed": 3, "temperature": 1.0, "max_tokens": 30}
    choices = served.chat(n=3, **fields)["choices"]
    texts = [choice["message"]["reasoning_content"] for choice in choices]
    assert [choice["index"] for choice in choices] == [0, 1, 2] and len(set(texts)) > 1
    alone = served.chat(**fields)["choices"][0]["message"]["reasoning_content"]
    assert texts[0] == alone
    again = served.chat(n=3, **fields)
    assert texts == [one["message"]["reasoning_content"] for one in again["choices"]]
    seeds = {one["foreal"]["settings"]["seed"] for one in again["choices"]}
    assert len(seeds) == 3 and again["usage"]["completion_tokens"] == 90
    assert again["usage"]["prompt_tokens"] == served.chat(**fields)["usage"]["prompt_tokens"]


def test_choices_are_those_of_a_batch(served: Served) -> None:
    fields: dict[str, Any] = {"seed": 3, "temperature": 1.0}
    body = {"prompt": ["Kim has", "Tom"], "n": 2, "max_tokens": 12, **fields}
    choices = served.post("/v1/completions", body).json()["choices"]
    batch = served.decoder.generate(["Kim has", "Tom"], n=2, max_new_tokens=12, **fields)
    assert [choice["text"] for choice in choices] == [one.text for texts in batch for one in texts]


def test_several_choices_are_not_streamed(served: Served) -> None:
    body = {"messages": QUESTION, "n": 2, "stream": True}
    status, error = served.error("/v1/chat/completions", body)
    assert status == 400 and error["param"] == "n"


def test_settings_of_ours_and_unknown_keys(served: Served) -> None:
    answer = served.chat(
        **{"lead_count": 4, "lead_probability": 1.0, "policy": "leader", "top_k": 3},
        **{"max_tokens": 8, "store": False, "user": "me", "n": 1, "metadata": {"a": "b"}},
        **{"parallel_tool_calls": False, "logit_bias": {}, "presence_penalty": 0},
    )
    settings = answer["foreal"]["settings"]
    assert settings["lead_count"] == 4 and settings["policy"] == "leader"
    assert answer["foreal"]["draft_tokens"] == 0 and settings["top_k"] == 3


def test_tokens_and_their_authors_on_demand(served: Served) -> None:
    fields: dict[str, Any] = {"foreal_tokens": True, "max_tokens": 60, "seed": 7}
    whole = served.chat(**fields)["foreal"]["tokens"]
    streamed = [
        token
        for part in served.stream(**fields)
        for token in part.get("foreal", {}).get("tokens", ())
    ]
    assert streamed == whole
    alone = served.decoder.generate(messages=QUESTION, max_new_tokens=60, seed=7)
    assert [token["text"] for token in whole] == list(alone.texts)
    assert [token["author"] for token in whole] == list(alone.authors)


def test_penalties_and_biases_reach_the_decoder(served: Served) -> None:
    token = served.decoder.encode(" Kim")[0]
    fields: dict[str, Any] = {"presence_penalty": 0.5, "frequency_penalty": -1.0, "seed": 7}
    biased = {"logit_bias": {str(token): -100.0}, **fields}
    settings = served.chat(max_tokens=2, **biased)["foreal"]["settings"]
    assert settings["presence_penalty"] == 0.5 and settings["frequency_penalty"] == -1.0
    assert " Kim" not in served.both(max_tokens=60, **biased)[0]


def test_logprobs_of_the_answer(served: Served) -> None:
    fields: dict[str, Any] = {"seed": 7, "logprobs": True, "top_logprobs": 2}
    choice = served.chat(**fields)["choices"][0]
    content = choice["logprobs"]["content"]
    alone = served.decoder.generate(messages=QUESTION, **fields)
    # All tokens after the thinking's end, without the end of sequence.
    count = len(content)
    known = alone.logprobs[-count - 1 : -1]
    assert "".join(one["token"] for one in content).strip() == choice["message"]["content"]
    assert [one["logprob"] for one in content] == [one.logprob for one in known]
    assert {one["author"] for one in content} <= set(alone.authors)
    assert all(len(one["top_logprobs"]) == 2 for one in content)
    assert all(bytes(one["bytes"]).decode() == one["token"] for one in content)
    parts = served.stream(**fields)
    streamed = [one["choices"][0]["logprobs"] for one in parts]
    assert [token for one in streamed if one for token in one["content"]] == content
    plain = served.chat(seed=7, logprobs=True, max_tokens=200)["choices"][0]["logprobs"]
    assert all(one["top_logprobs"] == [] for one in plain["content"])


def test_logprobs_of_a_completion(served: Served) -> None:
    body: dict[str, Any] = {"prompt": "Kim has", "max_tokens": 6, "seed": 1, "logprobs": 1}
    choice = served.post("/v1/completions", body).json()["choices"][0]
    known = choice["logprobs"]
    assert "".join(known["tokens"]) == choice["text"]
    cuts = [*known["text_offset"], None]
    pieces = [choice["text"][a:b] for a, b in pairwise(cuts)]
    assert pieces == known["tokens"] and all(len(top) == 1 for top in known["top_logprobs"])
    streamed = served.post("/v1/completions", {**body, "stream": True})
    parts = [json.loads(line[6:]) for line in streamed.text.split("\n\n")[:-2]]
    found = [part["choices"][0]["logprobs"] for part in parts]
    for field in ("tokens", "token_logprobs", "text_offset"):
        assert [one for record in found if record for one in record[field]] == known[field]
    none = served.post("/v1/completions", {**body, "logprobs": 0}).json()["choices"][0]
    assert none["logprobs"]["top_logprobs"] == [{}] * 6


STOP = "is"  # of the answer


def test_stop_strings_count_after_the_thinking_and_never_show(served: Served) -> None:
    thinking, answer = served.both(seed=7)
    assert STOP in answer and " I " in thinking
    for stop in ([" I ", STOP], STOP):
        cut = served.chat(seed=7, stop=stop)["choices"][0]
        assert cut["finish_reason"] == "stop"
        assert cut["message"]["content"] == answer.partition(STOP)[0]
        assert served.both(seed=7, stop=stop) == (thinking, answer.partition(STOP)[0])


def test_nothing_at_all_is_a_stream_too(serve: Callable[..., Served]) -> None:
    own = serve(ScriptedDecoder(pair_with_tools(), [""]))
    first, last = own.stream()
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"


# -- messages --------------------------------------------------------------------------------------


def test_content_as_parts_for_every_role(served: Served) -> None:
    def parts(text: str) -> list[Any]:
        return [{"type": "text", "text": text}]

    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    split = [{**message, "content": parts(message["content"])} for message in chat]
    developer = [{**split[0], "role": "developer"}, *split[1:]]
    fields: dict[str, Any] = {"max_tokens": 20, "seed": 1}
    texts = [served.chat(one, **fields)["choices"] for one in (chat, split, developer)]
    assert texts[0] == texts[1] == texts[2]


def test_template_options(serve: Callable[..., Served]) -> None:
    decoder = ScriptedDecoder(pair_with_tools(OPTIONS_TEMPLATE), ["Two.", "Hm.</think>\n\nTwo."])
    own = serve(decoder)
    options = {"enable_thinking": False, "documents": [{"text": "One and one."}]}
    quiet = own.chat(chat_template_kwargs=options)["choices"][0]["message"]
    loud = own.chat()["choices"][0]["message"]
    assert quiet["content"] == loud["content"] == "Two." and "reasoning_content" not in quiet
    assert "One and one." in decoder.prompts[0] and "</think>" in decoder.prompts[0]
    for name in ("chat_template", "tools", "tokenize", "messages"):
        body = {"messages": QUESTION, "chat_template_kwargs": {name: "{{ 1 }}"}}
        status, error = own.error("/v1/chat/completions", body)
        assert status == 400 and error["param"] == "chat_template_kwargs"


def test_both_names_of_the_thinking_are_read(serve: Callable[..., Served]) -> None:
    shown = "[{{ message.role }}|{{ message.reasoning_content }}|{{ message.content }}]"
    pair = pair_with_tools(TOOLS_TEMPLATE.replace("{{ message.content }}", shown))
    decoder = ScriptedDecoder(pair, ["a"] * 3)
    own = serve(decoder)
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    for given in ({"reasoning": "T"}, {"reasoning_content": "T"}):
        chat = [
            *QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [call], **given},
            {"role": "tool", "tool_call_id": "x", "content": "1"},
        ]
        own.chat(chat)
    missing = [*QUESTION, {"role": "assistant", "tool_calls": [call], "unknown": 1}]
    own.chat(missing)
    assert "[assistant|T|]" in decoder.prompts[0]
    assert decoder.prompts[0] == decoder.prompts[1]
    assert "[assistant||]" in decoder.prompts[2]
