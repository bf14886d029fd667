#!/usr/bin/env bash
# llama-index-core 0.14.25: structured_predict shows a model without function calls its JSON schema
# with every brace doubled: "{{" and "}}", as a format string escapes them.
#
# Guessed: the schema as JSON. What the model is shown cannot be parsed as such.
# Matters to: small models, which copy what they see, and prompts that are checked as JSON.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet 'llama-index-core==0.14.25'
"$work/venv/bin/python" - <<'PY'
import json
from importlib.metadata import version

from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

prompts = []


class Kim(CustomLLM):
    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="kim")

    def complete(self, prompt, formatted=False, **kwargs):
        prompts.append(prompt)
        return CompletionResponse(text='{"name": "Kim"}')

    def stream_complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError


class Person(BaseModel):
    """A person."""

    name: str


person = Kim().structured_predict(Person, PromptTemplate("Who is it?"))
[schema] = [line for line in prompts[0].splitlines() if "properties" in line]
print("llama-index-core", version("llama-index-core"))
print("the model is shown:", schema)
print("the answer is read:", repr(person))
assert schema.startswith("{{") and schema.endswith("}}"), "CHANGED"
try:
    json.loads(schema)
except json.JSONDecodeError as error:
    print("as stated: the schema that is shown is no JSON:", error)
else:
    raise AssertionError("CHANGED")
PY
