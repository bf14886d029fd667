"""Query engines and chat engines: one event per call, errors that are seen, prompts that hold no
cost and no old thinking."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
import torch

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from integrations import Passes
from li_helpers import QUESTION, Events, Make, Recorder, text_of, wait_until_stopped
from llama_index.core import Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode
from llama_index.core.text_splitter import SentenceSplitter
from scripted import WITHOUT_THINKING, ScriptedDecoder, pair_with_tools
from waiting import WAIT_S

from foreal_core import ContextOverflowError, FoReaLDecoder, OutOfMemoryError
from foreal_core.demo import grounded
from foreal_integrations.llama_index import FoReaLLLM, RequestRefusedError

LISTS = grounded.corpus(Random(0), 3, held_out=True)
NODES = [TextNode(text=one.text) for one in LISTS]
MODES = ["compact", "refine", "tree_summarize"]
EMPTY = "Empty Response"  # what some synthesizers make of errors


@pytest.fixture
def speaker() -> FoReaLLLM:
    """Answers at once, without thinking; what it says is nothing to look at."""
    return FoReaLLLM(decoder=pair_with_tools(WITHOUT_THINKING), max_new_tokens=6, seed=1)


@pytest.fixture
def token_counter() -> Iterator[TokenCountingHandler]:
    """Counts for everything that LlamaIndex makes."""
    counter = TokenCountingHandler(tokenizer=str.split)
    before = Settings._callback_manager
    Settings.callback_manager = CallbackManager([counter])
    yield counter
    Settings._callback_manager = before


@pytest.fixture
def own_tokens(speaker: FoReaLLLM) -> Iterator[None]:
    """LlamaIndex counts tokens as the pair does."""
    before = Settings.tokenizer
    Settings.tokenizer = speaker.get_token_ids
    yield
    Settings.tokenizer = before


def index_of(kind: str, nodes: Sequence[TextNode] = NODES) -> SummaryIndex | VectorStoreIndex:
    if kind == "summary":
        return SummaryIndex(nodes)
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))


def ask(engine: Any, how: str) -> str:
    if how == "query":
        return str(engine.query("How many?"))
    if how == "streaming":
        return "".join(engine.query("How many?").response_gen)
    return str(asyncio.run(asyncio.wait_for(engine.aquery("How many?"), WAIT_S)))


# -- query engines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["summary", "vector"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["query", "aquery", "streaming"])
def test_one_event_per_call_of_a_query(
    speaker: FoReaLLLM,
    events: Events,
    token_counter: TokenCountingHandler,
    kind: str,
    mode: str,
    how: str,
) -> None:
    engine = index_of(kind).as_query_engine(
        llm=speaker, response_mode=mode, streaming=how == "streaming", similarity_top_k=2
    )
    with speaker.track_costs() as bill:
        answer = ask(engine, how)
    assert answer and answer != EMPTY
    calls = {"compact": 1, "refine": 3 if kind == "summary" else 2, "tree_summarize": 1}[mode]
    assert len(events.costs) == events.calls == bill.totals()["calls"] == calls
    assert not any(cost.stopped_early for cost in events.costs)
    # Synthesizers put Settings' callbacks in place of the model's own.
    assert token_counter.completion_llm_token_count == bill.totals()["completion_tokens"]
    assert token_counter.prompt_llm_token_count == bill.totals()["prompt_tokens"]


@pytest.mark.parametrize("use_async", [True, False])
@pytest.mark.parametrize("how", ["query", "aquery", "streaming"])
def test_a_tree_pays_for_all_its_branches(
    speaker: FoReaLLLM, events: Events, own_tokens: None, use_async: bool, how: str
) -> None:
    # Lists so long that they fit no prompt together.
    index = SummaryIndex([TextNode(text=f"{one.text}\n" * 120) for one in LISTS])
    engine = index.as_query_engine(
        llm=speaker,
        response_mode="tree_summarize",
        use_async=use_async,
        streaming=how == "streaming",
    )
    with speaker.track_costs() as bill:
        assert ask(engine, how)
    assert bill.totals()["calls"] == len(events.costs) == events.calls > 2


def test_the_branches_of_a_tree_are_one_batch(decoder: FoReaLDecoder, passes: Passes) -> None:
    pytest.importorskip("llama_index.retrievers.bm25", reason="needs llama-index-retrievers-bm25")
    from foreal_integrations.llama_index.grounded import CHUNKS, Tree

    # An answer, so that the answers fit one prompt; the leader alone, so that all rows keep step.
    llm = FoReaLLLM(decoder=decoder, max_new_tokens=6, seed=1, policy="leader")
    tree = Tree(llm)
    alone = tree.summarize(use_async=False)
    one_by_one = len(passes.rows)
    passes.rows.clear()
    passes.start_together(decoder, CHUNKS)  # or else it hangs, and fails
    together = tree.summarize(use_async=True)
    assert together.text == alone.text
    assert len(together.records) == len(alone.records) > CHUNKS
    assert max(passes.rows) == CHUNKS and len(passes.rows) * 3 < one_by_one


def test_streamed_deltas_come_one_by_one(speaker: FoReaLLLM) -> None:
    index = index_of("summary")
    response = index.as_query_engine(llm=speaker, streaming=True).query("How many?")
    deltas = list(response.response_gen)
    assert len([delta for delta in deltas if delta]) > 2
    assert "".join(deltas) == str(index.as_query_engine(llm=speaker).query("How many?"))


def test_a_response_that_is_left_early_stops_and_is_charged(passes: Passes) -> None:
    decoder = pair_with_tools(WITHOUT_THINKING)
    # So hot that the end of the text is one token among many.
    llm = FoReaLLLM(decoder=decoder, max_new_tokens=1500, temperature=3.0, seed=1)
    engine = index_of("summary").as_query_engine(llm=llm, streaming=True)
    with llm.track_costs() as bill:
        response = engine.query("How many?")
        next(iter(response.response_gen))
        del response
    wait_until_stopped(decoder, bill, passes, len(passes.rows))
    assert bill.totals()["stopped_early"] == 1
    assert 0 < bill.totals()["completion_tokens"] < 1000


@pytest.mark.parametrize("shape", ["compact", "tree_summarize"])
def test_the_pair_was_trained_on_the_prompts_of_query_engines(
    decoder: FoReaLDecoder, shape: str
) -> None:
    inquiry = grounded.ask(Random(1), LISTS, shape)
    recorder = Recorder(decoder)
    llm = FoReaLLLM(decoder=recorder, max_new_tokens=1)
    index_of("summary").as_query_engine(llm=llm, response_mode=shape).query(inquiry.query)
    assert recorder.ids == [decoder.encode(messages=inquiry.messages)]


# -- errors ----------------------------------------------------------------------------------------


def full_device() -> None:
    raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize("kind", ["summary", "vector"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["query", "aquery", "streaming"])
def test_errors_are_no_empty_response(
    speaker: FoReaLLLM, passes: Passes, kind: str, mode: str, how: str
) -> None:
    # Far more of the pair's tokens than LlamaIndex's own tokenizer counts.
    long = TextNode(text="Constantinople xylophonist " * 150)
    broken = TextNode(text="a page of bytes: \udce9")
    for node, before, error in (
        (long, None, ContextOverflowError),
        (NODES[0], full_device, OutOfMemoryError),
        (broken, None, RequestRefusedError),
    ):
        engine = index_of(kind, [node]).as_query_engine(
            llm=speaker, response_mode=mode, streaming=how == "streaming"
        )
        passes.before = before
        with speaker.track_costs() as bill, pytest.raises(error):
            ask(engine, how)
        assert bill.totals()["failed"] >= 1
        assert not issubclass(error, ValueError | TypeError)  # what synthesizers swallow
    passes.before = None
    assert ask(index_of(kind).as_query_engine(llm=speaker, response_mode=mode), "query") != EMPTY


def test_the_prompt_helper_may_count_the_pairs_own_tokens(
    speaker: FoReaLLLM, own_tokens: None
) -> None:
    text = "Constantinople xylophonist " * 150
    index = SummaryIndex([TextNode(text=text)])
    with speaker.track_costs() as bill:
        index.as_query_engine(llm=speaker, response_mode="tree_summarize").query("How many?")
    assert bill.totals()["calls"] > 1 and bill.totals()["failed"] == 0
    splitter = SentenceSplitter(chunk_size=100, chunk_overlap=0)
    assert all(len(speaker.get_token_ids(part)) <= 100 for part in splitter.split_text(text))


# -- chat engines ----------------------------------------------------------------------------------


def writes(*replies: str) -> tuple[FoReaLLLM, ScriptedDecoder]:
    scripted = ScriptedDecoder(pair_with_tools(), replies)
    return FoReaLLLM(decoder=scripted), scripted


def chat_three_turns(engine: Any, how: str) -> list[str]:
    answers = []
    for turn in ("First?", "Second?", "Third?"):
        if how == "chat":
            answers.append(str(engine.chat(turn)))
        elif how == "stream_chat":
            answers.append("".join(engine.stream_chat(turn).response_gen))
        elif how == "achat":
            answers.append(str(asyncio.run(asyncio.wait_for(engine.achat(turn), WAIT_S))))
        else:

            async def read(turn: str = turn) -> str:
                response = await engine.astream_chat(turn)
                return "".join([delta async for delta in response.async_response_gen()])

            answers.append(asyncio.run(asyncio.wait_for(read(), WAIT_S)))
    return answers


@pytest.mark.parametrize("how", ["chat", "stream_chat", "achat", "astream_chat"])
@pytest.mark.parametrize("kind", ["condense_plus_context", "context", "simple"])
def test_prompts_of_later_turns(how: str, kind: str) -> None:
    condensing = kind == "condense_plus_context"
    replies = [f"secret</think>\n\n{answer}" for answer in ("Alpha.", "Beta.", "C.")]
    if condensing:  # every turn but the first is condensed before it is answered
        replies[1:1] = ["why</think>\n\nSecond?"]
        replies[3:3] = ["why</think>\n\nThird?"]
    llm, scripted = writes(*replies)
    memory = ChatMemoryBuffer.from_defaults(token_limit=10_000, tokenizer_fn=str.split)
    retriever = index_of("summary").as_retriever()
    if condensing:
        engine: Any = CondensePlusContextChatEngine.from_defaults(
            retriever=retriever, llm=llm, memory=memory
        )
    elif kind == "context":
        engine = ContextChatEngine.from_defaults(retriever=retriever, llm=llm, memory=memory)
    else:
        engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    with llm.track_costs() as bill:
        assert chat_three_turns(engine, how) == ["Alpha.", "Beta.", "C."]
    assert bill.totals()["calls"] == len(replies) == len(scripted.prompts)
    last = scripted.prompts[-1]
    assert "Alpha." in last and "Beta." in last
    for prompt in scripted.prompts:
        for leaked in ("secret", "why", "weight_bytes", "usage", "foreal", "thinking"):
            assert leaked not in prompt
        assert prompt.count("<think>") == 1 and prompt.endswith("<think>\n")


def test_thinking_of_other_models_is_left_out(decoder: FoReaLDecoder) -> None:
    recorder = Recorder(decoder)
    history = [
        ChatMessage(role="user", content="First?"),
        ChatMessage(role="assistant", content="<think>\nsecret</think>\n\nAlpha."),
        ChatMessage(role="user", content="Second?"),
    ]
    FoReaLLLM(decoder=recorder, max_new_tokens=1).chat(history)
    assert "secret" not in recorder.prompts[0] and "Alpha." in recorder.prompts[0]


def test_a_chat_engine_of_the_real_pair_streams_from_its_own_thread(make: Make) -> None:
    decoder = pair_with_tools(WITHOUT_THINKING)
    llm = make(decoder=decoder, max_new_tokens=12)
    with llm.track_costs() as bill:
        engine = SimpleChatEngine.from_defaults(llm=llm)
        streamed = "".join(engine.stream_chat(QUESTION).response_gen)
    assert bill.totals()["calls"] == 1
    assert streamed.strip() == text_of(llm.complete(QUESTION)).strip() != ""
