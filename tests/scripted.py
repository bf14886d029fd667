"""A decoder that writes what a test tells it to, through the real streams and records: for tests
whose point is what happens around a capable model's text."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from foreal_core import (
    AsyncTokenStream,
    FoReaLConfig,
    FoReaLDecoder,
    Generation,
    Prompt,
    Segment,
    TokenEvent,
    TokenStream,
)
from foreal_core.engine.request import Finished
from foreal_core.text.detokenizer import Detokenizer

# Hermes' way to show tools, as in Qwen's templates; opens the thinking like the bundled one.
TOOLS_TEMPLATE = """
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif -%}
"""
# As reasoning models' templates do when thinking is switched off.
WITHOUT_THINKING = TOOLS_TEMPLATE.replace("<think>\n", "<think>\n\n</think>\n\n")
# Asks whether to think, as Qwen3's does, and shows documents.
OPTIONS_TEMPLATE = (
    """
{%- for document in documents or [] %}<|im_start|>document
{{ document.text }}<|im_end|>
{% endfor %}"""
    + TOOLS_TEMPLATE.rstrip().removesuffix("{% endif -%}")
    + """{% if enable_thinking is defined and not enable_thinking %}
</think>

{% endif %}{% endif -%}
"""
)


@functools.cache
def pair_with_tools(template: str = TOOLS_TEMPLATE) -> FoReaLDecoder:
    """The bundled pair with a template that shows tools; loaded once."""
    demo = FoReaLDecoder.demo(prefix_cache=False)
    demo.tokenizer.chat_template = template
    return demo


class ScriptedDecoder:
    """Stands in for a FoReaLDecoder.

    Args:
        decoder: encodes the prompts and lends its cost record.
        replies: what is written, call by call; the prompts' templates have opened the thinking.
    """

    def __init__(self, decoder: FoReaLDecoder, replies: Sequence[str]) -> None:
        self._decoder = decoder
        self._replies = list(replies)
        self._sample = decoder.generate("1", max_new_tokens=1)
        self.prompts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def submit(
        self, prompt: Prompt, config: FoReaLConfig, on_done: Any = None
    ) -> Future[Generation]:
        future: Future[Generation] = Future()

        def push(item: Any) -> None:
            if isinstance(item, Finished):
                future.set_result(item.generation)

        self._push(prompt, push, on_done)
        return future

    def stream(self, prompt: Prompt, config: FoReaLConfig, on_done: Any = None) -> TokenStream:
        return TokenStream(lambda push: self._push(prompt, push, on_done))

    def astream(
        self, prompt: Prompt, config: FoReaLConfig, on_done: Any = None
    ) -> AsyncTokenStream:
        return AsyncTokenStream(lambda push: self._push(prompt, push, on_done))

    def _push(self, prompt: Prompt, push: Any, on_done: Any) -> Any:
        generation = self._write(prompt.ids)
        for index, text in enumerate(generation.texts):
            push([TokenEvent(index, generation.token_ids[index], text, "leader", 0)])
        if on_done is not None:
            on_done(generation)
        push(_Written(generation))
        return _Done()

    def _write(self, ids: Sequence[int]) -> Generation:
        self.prompts.append(self._decoder.tokenizer.decode(ids))
        text = self._replies.pop(0)
        written = self._decoder.tokenizer(text)["input_ids"]
        detokenizer = Detokenizer(self._decoder.tokenizer)
        texts = tuple(detokenizer.push(token) for token in written)
        assert "".join(texts) == text
        count = len(written)
        cost = replace(
            self._sample.cost,
            prompt_tokens=len(ids),
            completion_tokens=count,
            leader_tokens=count,
            draft_tokens=0,
        )
        return replace(
            self._sample,
            text=text,
            texts=texts,
            token_ids=tuple(written),
            authors=("leader",) * count,
            segments=(Segment("leader", 0, count, "end_of_sequence"),),
            cost=cost,
            finish_reason="stop",
        )


class _Written(Finished):
    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    @property
    def generation(self) -> Generation:
        return self._generation


class _Done:
    def cancel(self) -> None:
        pass


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A tool call as a model writes it."""
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


def fenced_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A tool call as Qwen2.5-Coder writes it, whatever its template says."""
    return f"```json\n{json.dumps({'name': name, 'arguments': arguments}, indent=2)}\n```"
