#!/usr/bin/env bash
# langchain-core 1.8.3: batch(..., return_exceptions=True) of an LLM returns one prompt's error in the
# place of every prompt that shared its call, also of those whose answers were made before. The same
# call on a chat model returns the error in its own place only.
#
# Guessed: the good prompts' answers, and one error in its place.
# Matters to: everyone who retries the failed ones of a batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'langchain-core==1.8.3'
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from langchain_core.language_models import LLM, SimpleChatModel

PROMPTS = ["one", "bad", "two"]


def answer(prompt: str) -> str:
    if prompt == "bad":
        raise ValueError("this prompt is bad")
    return prompt.upper()


class Upper(LLM):
    @property
    def _llm_type(self) -> str:
        return "upper"

    def _call(self, prompt, stop=None, run_manager=None, **kwargs):
        return answer(prompt)


class UpperChat(SimpleChatModel):
    @property
    def _llm_type(self) -> str:
        return "upper"

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        return answer(messages[-1].content)


llm = [repr(one) for one in Upper().batch(PROMPTS, return_exceptions=True)]
chat = UpperChat().batch(PROMPTS, return_exceptions=True)
chat = [repr(getattr(one, "content", one)) for one in chat]
print("langchain-core", version("langchain-core"))
print("LLM:       ", llm)
print("chat model:", chat)
error = repr(ValueError("this prompt is bad"))
assert llm == [error] * 3, "CHANGED"
assert chat == ["'ONE'", error, "'TWO'"], "CHANGED"
print("as stated: three errors for one bad prompt")
PY
