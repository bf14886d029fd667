"""What the eight methods ask the models: templates, raw prompts, one beginning of sequence."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from li_helpers import Recorder, chat_of
from llama_index.core.llms import ChatMessage
from toy import scripted_pair

from foreal_core import FoReaLDecoder
from foreal_integrations.llama_index import FoReaLLLM


def test_prompts_and_templates(decoder: FoReaLDecoder) -> None:
    recorder = Recorder(decoder)

    def prompt_of(prompt: str, **arguments: Any) -> str:
        llm = FoReaLLLM(decoder=recorder, max_new_tokens=1, **arguments.pop("init", {}))
        llm.complete(prompt, **arguments)
        return recorder.prompts[-1]

    question = [{"role": "user", "content": "How many?"}]
    templated = decoder.tokenizer.apply_chat_template(
        question, tokenize=False, add_generation_prompt=True
    )
    assert prompt_of("How many?") == templated
    assert prompt_of(templated, formatted=True) == templated
    assert prompt_of("How many?", raw_prompt=True) == "How many?"
    assert prompt_of("How many?", init={"raw_prompt": True}) == "How many?"
    assert prompt_of("x", init={"completion_to_prompt": lambda one: f"[{one}]"}) == "[x]"
    llm = FoReaLLLM(decoder=recorder, max_new_tokens=1)
    llm.chat(chat_of("How many?"))
    assert recorder.prompts[-1] == templated
    own = FoReaLLLM(
        decoder=recorder, max_new_tokens=1, messages_to_prompt=lambda given: f"<{given[0].content}>"
    )
    own.chat(chat_of("x"))
    assert recorder.prompts[-1] == "<x>"


def test_a_model_without_a_template_gets_plain_text() -> None:
    two = scripted_pair({":": " x"}, {":": " x"})
    two.tokenizer.chat_template = None
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        llm = FoReaLLLM(decoder=decoder, max_new_tokens=2)
        assert not llm.metadata.is_chat_model and not llm.metadata.is_function_calling_model
        assert llm.chat([ChatMessage(role="user", content="Wait")]).raw["usage"]["prompt_tokens"]


def test_exactly_one_bos() -> None:
    two = scripted_pair({"<|assistant|>": " x"}, {"<|assistant|>": " x"})
    two.tokenizer.bos_token = "<|pad|>"
    two.tokenizer.chat_template = "{{ bos_token }}" + two.tokenizer.chat_template
    bos = two.tokenizer.bos_token_id
    with FoReaLDecoder(two.leader, two.draft, two.tokenizer) as decoder:
        recorder = Recorder(decoder)
        llm = FoReaLLLM(decoder=recorder, max_new_tokens=1)
        llm.chat(chat_of("Wait"))
        templated = decoder.tokenizer.decode(recorder.ids[-1])
        llm.complete(templated, formatted=True)
        assert recorder.ids[-1] == recorder.ids[-2]
        llm.complete("<|pad|>" + templated, formatted=True)
        for ids in recorder.ids:
            assert ids.count(bos) == 1 and ids[0] == bos
