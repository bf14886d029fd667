"""Requests as they come in: their form, and nothing of their meaning.

Unknown keys are kept, since clients send many; fields of FoReaLConfig are looked for among them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel


class _Form(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ContentPart(_Form):
    """A part of a message; text is the only kind that these models read."""

    type: str
    text: str | None = None


class FunctionCall(_Form):
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(_Form):
    """A call in an assistant's message."""

    id: str | None = None
    type: str | None = None
    function: FunctionCall


class Message(_Form):
    """One message of a chat; the thinking of an assistant's may have either name."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(_Form):
    """What a tool does and takes."""

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Form):
    """A function that the model may call."""

    type: str = "function"
    function: Function


class JsonSchema(_Form):
    """A named JSON schema."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Form):
    """What the answer must look like: "text", "json_object" or "json_schema"."""

    type: str
    json_schema: JsonSchema | None = None


class StreamOptions(_Form):
    """Whether a stream ends with its usage."""

    include_usage: bool | None = None


class Sampling(_Form):
    """What chats and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    foreal_tokens: bool | None = Field(
        None, description="Ours: the answer tells who wrote each token."
    )


class ChatRequest(Sampling):
    """POST /v1/chat/completions; fields of FoReaLConfig may stand beside these."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Sampling):
    """POST /v1/completions; a prompt is a text or token ids, or a list of either."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = None


class TokenizeText(_Form):
    """A text to count."""

    model: str | None = None
    prompt: str
    return_token_strs: bool | None = None


class TokenizeChat(_Form):
    """A chat to count, tools and template included."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class TokenizeRequest(RootModel[TokenizeChat | TokenizeText]):
    """POST /tokenize."""

    @property
    def model(self) -> str | None:
        """Which model is asked."""
        return self.root.model
