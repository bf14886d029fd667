"""Answers of a given structure: what is asked of the model, and what becomes of its text."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Literal, TypeVar

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk
from langchain_core.output_parsers import (
    BaseCumulativeTransformOutputParser,
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableGenerator
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ValidationError

from foreal_core import ConfigError
from foreal_core.chat.messages import closed
from foreal_core.text.json_texts import read_json

T = TypeVar("T")
StructureMethod = Literal["function_calling", "json_schema", "json_mode"]


def can_constrain() -> bool:
    """Whether answers can be held to a schema while they are written (the extra "json")."""
    return importlib.util.find_spec("llguidance") is not None


def response_schema(response_format: Any) -> dict[str, Any] | None:
    """The JSON schema of an answer in OpenAI's `response_format`; None where it may be any text.

    Raises:
        ConfigError: it is of another form.
    """
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    described = response_format.get("json_schema") if kind == "json_schema" else None
    if isinstance(described, Mapping) and isinstance(described.get("schema"), Mapping):
        schema: dict[str, Any] = closed(described["schema"])
        return schema
    raise ConfigError(
        f"response_format={response_format!r} is not allowed: a mapping of type 'json_schema' "
        "(with the schema under json_schema.schema), 'json_object' or 'text'."
    )


def response_format(
    schema: dict[str, Any] | type | None, method: StructureMethod
) -> dict[str, Any]:
    """OpenAI's `response_format` of answers that are JSON.

    Args:
        schema: a pydantic class, a TypedDict, a JSON schema or a function in OpenAI's JSON.
        method: "json_schema" or "json_mode".
    """
    if method == "json_mode":
        return {"type": "json_object"}
    if schema is None:
        raise ConfigError("schema=None is not allowed with method='json_schema'.")
    if isinstance(schema, dict) and not {"function", "parameters", "input_schema"} & schema.keys():
        described = schema
    elif isinstance(schema, type) and issubclass(schema, BaseModel):
        described = schema.model_json_schema()
    else:
        described = convert_to_json_schema(schema)
    name = str(described.get("title", "answer"))
    return {"type": "json_schema", "json_schema": {"name": name, "schema": described}}


def tool_json(tool: Any) -> dict[str, Any]:
    """A function, a pydantic class, a LangChain tool or OpenAI's JSON, as OpenAI's JSON.

    A class that contains itself keeps its references, and a JSON schema that names no properties
    at its top stays whole: LangChain would put "anything" there, and the grammar would hold the
    model to nothing.
    """
    converted = convert_to_openai_tool(tool)
    if isinstance(tool, Mapping) and "title" in tool and "name" not in tool:
        whole = {name: part for name, part in tool.items() if name not in ("title", "description")}
        converted["function"].setdefault("parameters", whole)
    if isinstance(tool, type) and issubclass(tool, BaseModel):
        schema = tool.model_json_schema()
        if _contains_itself(schema):
            converted["function"]["parameters"] = schema
    return converted


def _contains_itself(schema: Mapping[str, Any]) -> bool:
    """Whether a definition of the schema leads back to itself."""
    leads = {name: _references(one) for name, one in schema.get("$defs", {}).items()}
    for _ in leads:  # as many steps as the longest way can have
        for name, found in leads.items():
            leads[name] = found.union(*(leads.get(other, set()) for other in found))
    return any(name in found for name, found in leads.items())


def _references(schema: Any) -> set[str]:
    """The names of the definitions that a part of a schema refers to."""
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        own = {reference.rpartition("/")[2]} if isinstance(reference, str) else set()
        return own.union(*map(_references, schema.values()))
    return set().union(*map(_references, schema)) if isinstance(schema, list) else set()


def answer_parser(schema: dict[str, Any] | type | None) -> BaseOutputParser[Any]:
    """Reads an answer that is JSON: into the pydantic class, if `schema` is one, else as it is."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _PydanticAnswerParser(pydantic_object=schema)
    return _JsonAnswerParser()


def call_parser(schema: dict[str, Any] | type) -> BaseOutputParser[Any]:
    """Reads a tool call's arguments: into the pydantic class, if `schema` is one, else as they
    are."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _PydanticCallParser(tools=[schema], first_tool_only=True)
    name = tool_json(schema)["function"]["name"]
    return _JsonCallParser(key_name=name, first_tool_only=True)


# LangChain's parsers complete half a JSON text, return None where there is no call, and never look
# at a stream's end. Here an answer that is not whole is an error, streamed or not.


class _Whole(BaseCumulativeTransformOutputParser[Any]):
    """Refuses an answer that is not whole, also at the end of its stream."""

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        seen: list[Any] = []
        yield from super()._transform(_noted(input, seen))
        self._check_end(seen)

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        seen: list[Any] = []
        async for parsed in super()._atransform(_anoted(input, seen)):
            yield parsed
        self._check_end(seen)

    def _check_end(self, seen: list[Any]) -> None:
        if seen:
            whole = sum(seen[1:], seen[0])
            is_message = isinstance(whole, BaseMessage)
            self.parse_result(
                [ChatGeneration(message=whole) if is_message else Generation(text=whole)]
            )


def _noted(input: Iterator[T], seen: list[T]) -> Iterator[T]:
    for chunk in input:
        seen.append(chunk)
        yield chunk


async def _anoted(input: AsyncIterator[T], seen: list[T]) -> AsyncIterator[T]:
    async for chunk in input:
        seen.append(chunk)
        yield chunk


class _JsonAnswerParser(_Whole, JsonOutputParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _refuse_half_json(result[0])
        return super().parse_result(result, partial=partial)


class _PydanticAnswerParser(_Whole, PydanticOutputParser[Any]):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _refuse_half_json(result[0])
        return super().parse_result(result, partial=partial)


class _JsonCallParser(_Whole, JsonOutputKeyToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _refuse_no_call(result[0])
        return super().parse_result(result, partial=partial)


class _PydanticCallParser(_Whole, PydanticToolsParser):
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if not partial:
            _refuse_no_call(result[0])
        return super().parse_result(result, partial=partial)


class RawAndParsed(dict[str, Any]):
    """Some of an answer's "raw" message, "parsed" value and "parsing_error". Sums join messages,
    and the later value takes the earlier one's place."""

    def __add__(self, other: Any) -> RawAndParsed:
        joined = RawAndParsed({**self, **other})
        if "raw" in self and "raw" in other:
            joined["raw"] = self["raw"] + other["raw"]
        return joined


def raw_and_parsed(parser: BaseOutputParser[Any]) -> Runnable[AIMessage, Any]:
    """Hands messages on, beside what the parser makes of them while they grow, and what was wrong
    in the end."""

    def parts(messages: Iterator[AIMessage]) -> Iterator[RawAndParsed]:
        reading = _Reading(parser)
        for message in messages:
            yield from reading.take(message)
        if reading.whole is not None:
            yield reading.end()

    async def aparts(messages: AsyncIterator[AIMessage]) -> AsyncIterator[RawAndParsed]:
        reading = _Reading(parser)
        async for message in messages:
            for part in reading.take(message):
                yield part
        if reading.whole is not None:
            yield reading.end()

    return RunnableGenerator(parts, aparts)


class _Reading:
    """One answer and what a parser makes of it."""

    def __init__(self, parser: BaseOutputParser[Any]) -> None:
        self.whole: Any = None
        self._parser = parser
        self._parsed: Any = None

    def take(self, message: AIMessage) -> Iterator[RawAndParsed]:
        """What is new with one more part of the message."""
        yield RawAndParsed(raw=message)
        self.whole = message if self.whole is None else self.whole + message
        if not isinstance(message, BaseMessageChunk):
            return
        parsed = None
        with contextlib.suppress(OutputParserException, ValidationError):
            parsed = self._parser.parse_result([ChatGeneration(message=self.whole)], partial=True)
        if parsed is not None and parsed != self._parsed:
            self._parsed = parsed
            yield RawAndParsed(parsed=parsed)

    def end(self) -> RawAndParsed:
        """The answer, or what is wrong with it."""
        try:
            return RawAndParsed(parsed=self._parser.invoke(self.whole), parsing_error=None)
        except Exception as error:  # any that a user's class raises, too
            return RawAndParsed(parsed=None, parsing_error=error)


def _refuse_half_json(generation: Generation) -> None:
    try:
        read_json(generation.text)
    except ValueError as error:
        raise OutputParserException(
            f"the model wrote no whole JSON as its answer: {error}{_ending(generation)}",
            llm_output=generation.text,
        ) from error


def _refuse_no_call(generation: Generation) -> None:
    message = generation.message if isinstance(generation, ChatGeneration) else None
    if not isinstance(message, AIMessage) or message.tool_calls:
        return
    broken = [call["error"] or "" for call in message.invalid_tool_calls]
    raise OutputParserException(
        f"the model wrote no whole call: {'; '.join(broken) or 'there is none'}"
        f"{_ending(generation)}",
        llm_output=str(message.content),
    )


def _ending(generation: Generation) -> str:
    message = generation.message if isinstance(generation, ChatGeneration) else None
    cut_off = message is not None and message.response_metadata.get("finish_reason") == "length"
    return "; max_new_tokens ended its text" if cut_off else ""
