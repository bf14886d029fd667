"""Predictions of pydantic classes, written under their schema."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, TypeAlias

from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from pydantic import BaseModel

from foreal_core.chat.messages import closed

Cls: TypeAlias = type[BaseModel]
Given: TypeAlias = dict[str, Any] | None

if TYPE_CHECKING:
    from llama_index.core.llms.llm import LLM as _Base
else:  # a class of LlamaIndex would wrap what it overrides in a second span
    _Base = object


class ConstrainedPredictions(_Base):
    """Makes every structured prediction of an LLM a constrained one.

    LlamaIndex asks for a forced tool call where the chat template shows tools, and else shows the
    schema in the prompt and hopes; there the schema is passed on, so that the answer must follow
    it. Its streams do not force the call; these do.
    """

    def structured_predict(
        self, output_cls: Cls, prompt: PromptTemplate, llm_kwargs: Given = None, **prompt_args: Any
    ) -> BaseModel:
        given = self._with_schema(output_cls, llm_kwargs)
        predicted: BaseModel = super().structured_predict(output_cls, prompt, given, **prompt_args)
        return predicted

    async def astructured_predict(
        self, output_cls: Cls, prompt: PromptTemplate, llm_kwargs: Given = None, **prompt_args: Any
    ) -> BaseModel:
        given = self._with_schema(output_cls, llm_kwargs)
        predicted: BaseModel = await super().astructured_predict(
            output_cls, prompt, given, **prompt_args
        )
        return predicted

    def _structured_stream_call(
        self, output_cls: Cls, prompt: PromptTemplate, llm_kwargs: Given = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        given = self._with_schema(output_cls, llm_kwargs)
        return self._program(output_cls, prompt).stream_call(llm_kwargs=given, **prompt_args)

    async def _structured_astream_call(
        self, output_cls: Cls, prompt: PromptTemplate, llm_kwargs: Given = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        given = self._with_schema(output_cls, llm_kwargs)
        program = self._program(output_cls, prompt)
        return await program.astream_call(llm_kwargs=given, **prompt_args)

    @property
    def _predicts_by_text(self) -> bool:
        mode = self.pydantic_program_mode
        return mode == PydanticProgramMode.LLM or (
            mode == PydanticProgramMode.DEFAULT and not self.metadata.is_function_calling_model
        )

    def _with_schema(
        self, output_cls: type[BaseModel], llm_kwargs: dict[str, Any] | None
    ) -> dict[str, Any]:
        given = dict(llm_kwargs or {})
        if self._predicts_by_text:
            given.setdefault("json_schema", closed(output_cls.model_json_schema()))
        return given

    def _program(
        self, output_cls: type[BaseModel], prompt: PromptTemplate
    ) -> BasePydanticProgram[Any]:
        forced = {} if self._predicts_by_text else {"tool_choice": "required"}
        return get_program_for_llm(
            output_cls, prompt, self, pydantic_program_mode=self.pydantic_program_mode, **forced
        )
