"""FoReaLLLM: the pair as a LangChain text model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation as TextGeneration, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from foreal_core import FoReaLDecoder, Generation, TokenEvent
from foreal_core.chat.ledger import free_of_charge
from foreal_core.chat.messages import asking
from foreal_core.chat.outcomes import outcome
from foreal_integrations.langchain.base import AsyncManager, FoReaLModel, Manager, Request, Stop
from foreal_integrations.langchain.callbacks import record_of


class FoReaLLLM(FoReaLModel, BaseLLM):
    """A leader and a draft that write one text, as a LangChain LLM.

        llm = FoReaLLLM(leader="...", draft="...", max_new_tokens=512)
        llm.invoke("...", lead_count=8, seed=1)

    A plain string is wrapped as one user message where the tokenizer has a chat template;
    `raw_prompt=True` turns that off. The text is all that was written, thinking included;
    `ChatFoReaL` keeps the two apart. `batch` runs all prompts in one call of the decoder; with
    `return_exceptions`, as retries and fallbacks ask, each is a call of its own, side by side.
    `generation_info["foreal"]` is the cost record.

    Raises:
        ConfigError: a wrong or unknown argument, in the constructor or in a call.
        ContextOverflowError: a prompt leaves no room to write.
        TimeoutError: a call took longer than `timeout` seconds.
    """

    raw_prompt: bool = False
    """Strings go to the models as they are; also an argument of every call."""

    _per_call: ClassVar[frozenset[str]] = FoReaLModel._per_call | {"raw_prompt"}
    # Of a call's copy: what it computed itself; everything else in its result is from a cache.
    _computed: list[TextGeneration] = PrivateAttr(default_factory=list)

    # For type checkers, which else would make one up of this class's own fields.
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)

    # -- entry points: each call runs on a copy that holds its settings ---------------------------

    def generate(
        self, prompts: list[str], stop: Stop = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        call, rest = self._for_call(kwargs, callbacks)
        result = super(FoReaLModel, call).generate(prompts, stop, callbacks, **rest)
        return call._mark_cached(result)

    async def agenerate(
        self, prompts: list[str], stop: Stop = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        call, rest = self._for_call(kwargs, callbacks)
        result = await super(FoReaLModel, call).agenerate(prompts, stop, callbacks, **rest)
        return call._mark_cached(result)

    def batch(
        self, inputs: list[LanguageModelInput], config: Any = None, **kwargs: Any
    ) -> list[str]:
        # One call of the decoder for all of them, unless each may fail by itself.
        kind = FoReaLModel if kwargs.get("return_exceptions") else BaseLLM
        return kind.batch(self, inputs, config, **kwargs)

    async def abatch(
        self, inputs: list[LanguageModelInput], config: Any = None, **kwargs: Any
    ) -> list[str]:
        kind = Runnable if kwargs.get("return_exceptions") else BaseLLM
        return await kind.abatch(self, inputs, config, **kwargs)

    # -- what LangChain calls -----------------------------------------------------------------

    def _generate(
        self, prompts: list[str], stop: Stop = None, run_manager: Manager = None, **kwargs: Any
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            chunks = list(self._stream(prompts[0], stop, run_manager, **kwargs))
            return self._result([_joined(chunks)])
        settings = self._settings(stop, kwargs)
        decoder = self._decoder()
        ready = [decoder.prepare(**self._asking(decoder, prompt)) for prompt in prompts]
        reader = _TextReader(decoder)
        return self._result(list(map(reader.whole, self._generations(decoder, ready, settings))))

    async def _agenerate(
        self, prompts: list[str], stop: Stop = None, run_manager: AsyncManager = None, **kwargs: Any
    ) -> LLMResult:
        if self.streaming and len(prompts) == 1:
            chunks = [c async for c in self._astream(prompts[0], stop, run_manager, **kwargs)]
            return self._result([_joined(chunks)])
        settings = self._settings(stop, kwargs)
        decoder = await self._adecoder()
        ready = [await self._aprepare(decoder, **self._asking(decoder, one)) for one in prompts]
        generations = await self._agenerations(decoder, ready, settings)
        return self._result(list(map(_TextReader(decoder).whole, generations)))

    def _stream(
        self, prompt: str, stop: Stop = None, run_manager: Manager = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        settings = self._settings(stop, kwargs)
        decoder = self._decoder()
        ready = decoder.prepare(**self._asking(decoder, prompt))
        request = Request(decoder, ready, settings, _TextReader(decoder))
        with contextlib.closing(self._chunks(request)) as chunks:
            for chunk in chunks:
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self, prompt: str, stop: Stop = None, run_manager: AsyncManager = None, **kwargs: Any
    ) -> AsyncIterator[GenerationChunk]:
        settings = self._settings(stop, kwargs)
        decoder = await self._adecoder()
        ready = await self._aprepare(decoder, **self._asking(decoder, prompt))
        request = Request(decoder, ready, settings, _TextReader(decoder))
        async with contextlib.aclosing(self._achunks(request)) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # -- what LangChain asks about the model ----------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "foreal"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**super()._identifying_params, "raw_prompt": self.raw_prompt}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._traced("llm", stop, kwargs.get("model"))

    # -- parts ------------------------------------------------------------------------------------

    def _for_call(
        self, arguments: Mapping[str, Any], callbacks: Any
    ) -> tuple[Self, dict[str, Any]]:
        call, rest = super()._for_call(arguments, callbacks)
        call._computed = []
        return call, rest

    def _asking(self, decoder: FoReaLDecoder, prompt: str) -> dict[str, Any]:
        request = asking(decoder, prompt, raw=self.raw_prompt)
        return {**request, "chat_template_kwargs": self._template({})}

    def _result(self, generations: list[TextGeneration]) -> LLMResult:
        self._computed += generations
        usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        for generation in generations:
            record = record_of(generation) or {}
            for name in ("prompt_tokens", "completion_tokens"):
                usage[name] += record[name]
                usage["total_tokens"] += record[name]
        return LLMResult(
            generations=[[generation] for generation in generations],
            llm_output={"token_usage": usage, "model_name": self.model_name},
        )

    def _mark_cached(self, result: LLMResult) -> LLMResult:
        """Marks what came from LangChain's cache: it cost nothing this time."""
        computed = {id(generation) for generation in self._computed}
        for generations in result.generations:
            for index, generation in enumerate(generations):
                record = record_of(generation)
                if record is None or id(generation) in computed:
                    continue
                free = free_of_charge(record)
                info = {**(generation.generation_info or {}), "foreal": free}
                # A copy: the cache may hold this very object.
                generations[index] = generation.model_copy(update={"generation_info": info})
                for ledger in self._payers:  # LangChain runs no callbacks for a hit
                    ledger.charge(free)
        return result


class _TextReader:
    """A text as LangChain's generations."""

    def __init__(self, decoder: FoReaLDecoder) -> None:
        self._decoder = decoder

    def whole(self, generation: Generation) -> TextGeneration:
        return TextGeneration(text=generation.text, generation_info=self._info(generation))

    def chunks(self, event: TokenEvent) -> list[GenerationChunk]:
        return [GenerationChunk(text=event.text)] if event.text else []

    def last_chunks(self, generation: Generation) -> list[GenerationChunk]:
        return [GenerationChunk(text="", generation_info=self._info(generation))]

    def _info(self, generation: Generation) -> dict[str, Any]:
        cost = generation.cost.to_dict()
        told = outcome(generation, self._decoder)
        return {"finish_reason": generation.finish_reason, "foreal": cost, **told}


def _joined(chunks: Sequence[GenerationChunk]) -> TextGeneration:
    text = "".join(chunk.text for chunk in chunks)
    return TextGeneration(text=text, generation_info=chunks[-1].generation_info)
