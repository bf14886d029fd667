"""The server's description of itself in OpenAPI, made from the requests' own forms."""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import models_json_schema

from foreal_core.config import FoReaLConfig
from foreal_core.serve.asks import SETTINGS
from foreal_core.serve.requests import ChatRequest, CompletionRequest, TokenizeRequest

_FORMS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a chat, whole or as server-sent events."),
    "/v1/completions": (CompletionRequest, "Go on with a text or with token ids."),
    "/tokenize": (TokenizeRequest, "Count the tokens of a text or a chat."),
}
_READS = {
    "/v1/models": "The pair, its context and what its tokens cost.",
    "/v1/models/{model}": "The same, by its name.",
    "/health": "Whether requests are taken.",
    "/metrics": "Counters for Prometheus.",
}
_ERRORS = {
    "400": "What is asked for is not allowed, or the prompt does not fit the context.",
    "401": "The API key is missing or wrong.",
    "403": "The server has no key and was called by a name that is not of the loopback.",
    "404": "There is no such model, or no such path.",
    "405": "The path takes another method.",
    "408": "The body was too slow.",
    "413": "The body is too large.",
    "422": "The body has not the form of a request.",
    "429": "Too many requests wait; Retry-After says when to come again.",
    "500": "The server failed.",
    "503": "The models are being loaded, or the server is shutting down.",
    "504": "The answer took too long.",
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


@functools.cache
def description() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    forms = [(form, "validation") for form, _ in _FORMS.values()]
    references, definitions = models_json_schema(
        forms,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    schemas = definitions["$defs"]
    for name in (ChatRequest.__name__, CompletionRequest.__name__):
        schemas[name]["properties"] = {**_settings(), **schemas[name]["properties"]}
    paths: dict[str, Any] = {}
    for path, (form, text) in _FORMS.items():
        schema = references[form, "validation"]
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        answers = _answers("application/json", "text/event-stream")
        paths[path] = {"post": {"summary": text, "requestBody": body, "responses": answers}}
    for path, text in _READS.items():
        kind = "text/plain" if path == "/metrics" else "application/json"
        paths[path] = {"get": {"summary": text, "responses": _answers(kind)}}
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{model}"]["get"]["parameters"] = [model]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FoReaL: two models write one text",
            "version": version("foreal-decoding"),
            "description": "OpenAI's protocol. Fields of FoReaLConfig may stand in every request.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _settings() -> dict[str, Any]:
    """The fields of FoReaLConfig that requests may have beside OpenAI's."""
    return {
        name: {**_kind(hint), "description": "Ours: a field of FoReaLConfig."}
        for name, hint in get_type_hints(FoReaLConfig).items()
        if name in SETTINGS
    }


def _kind(hint: Any) -> dict[str, Any]:
    try:
        schema = TypeAdapter(hint).json_schema()
    except PydanticInvalidForJsonSchema:  # a policy may be a function, in Python
        return {"type": "string"}
    # What pydantic puts beside a schema would not be found from within the description.
    beside = schema.pop("$defs", {})
    kinds = schema.get("anyOf", [])
    schema |= {"anyOf": [beside.get(_name(kind), kind) for kind in kinds]} if kinds else {}
    return schema


def _name(kind: dict[str, Any]) -> str:
    return str(kind.get("$ref", "")).rpartition("/")[2]


def _answers(*kinds: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "The answer.", "content": {kind: {} for kind in kinds}},
        **{code: {"description": text, "content": error} for code, text in _ERRORS.items()},
    }
