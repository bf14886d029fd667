#!/usr/bin/env bash
# llama-index-core 0.14.25: a stream that its reader closes leaves the model's own generator open
# where an event handler keeps the events: the exception event's traceback holds it.
#
# Guessed: closing a stream closes the generator that it wraps, whoever listens.
# Matters to: models whose work goes on until their generator is closed, beside handlers that record.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'llama-index-core==0.14.25'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage, ChatResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback

closed = []
kept = []


class Counts(CustomLLM):
    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="counts")

    def complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError

    def stream_complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError

    @llm_chat_callback()
    def stream_chat(self, messages, **kwargs):
        def numbers():
            try:
                for number in range(1000):
                    yield ChatResponse(message=ChatMessage(role="assistant", content=str(number)))
            finally:
                closed.append(True)

        return numbers()


class Keeps(BaseEventHandler):
    def handle(self, event, **kwargs):
        kept.append(event)


def leave() -> bool:
    """Reads one response and closes the stream; whether the model's generator is closed then."""
    closed.clear()
    stream = Counts().stream_chat([ChatMessage(role="user", content="Count.")])
    next(stream)
    stream.close()
    del stream
    return bool(closed)


alone = leave()
get_dispatcher().add_event_handler(Keeps())
recorded = leave()
print("llama-index-core", version("llama-index-core"))
print("one response read, then stream.close(); the model's generator is closed:")
print("  without a handler:", alone, "- with one that keeps events:", recorded)
assert alone and not recorded, "CHANGED"
print("as stated: the generator stays open for as long as the events are kept")
PY
