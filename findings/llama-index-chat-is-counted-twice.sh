#!/usr/bin/env bash
# llama-index-core 0.14.25: one CustomLLM.chat over a decorated `complete` is two LLM events, so that
# TokenCountingHandler counts one call's tokens twice.
#
# Guessed: one call, one event. The documentation's example of a CustomLLM is decorated in this way.
# Matters to: token counts and bills of custom models in chat engines.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'llama-index-core==0.14.25'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback

calls = []


class Four(CustomLLM):
    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="four")

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        calls.append(prompt)
        return CompletionResponse(text="these are four words")

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError


counter = TokenCountingHandler(tokenizer=str.split)
Four(callback_manager=CallbackManager([counter])).chat([ChatMessage(content="Say four words.")])
events = [one.completion_token_count for one in counter.llm_token_counts]
print("llama-index-core", version("llama-index-core"))
print("calls of the model:", len(calls), "- words that it wrote: 4")
print("LLM events:", len(events), "- completion tokens of each:", events)
assert len(calls) == 1 and len(events) == 2, "CHANGED"
assert events[0] == 4 and sum(events) > 2 * 4, "CHANGED"
print(f"as stated: {sum(events)} completion tokens for four words")
PY
