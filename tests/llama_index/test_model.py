"""The model as an object: metadata, dictionaries, pickles, Settings; processes that lack a
framework."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from li_helpers import QUESTION, Make, chat_of, thinking_of
from llama_index.core import Settings, SummaryIndex
from llama_index.core.llms import LLM, CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.schema import TextNode
from scripted import pair_with_tools
from waiting import WAIT_S

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder
from foreal_core.chat.settings import SETTINGS
from foreal_integrations.llama_index import FoReaLLLM


def test_kind(llm: FoReaLLLM) -> None:
    assert isinstance(llm, CustomLLM) and isinstance(llm, FunctionCallingLLM)
    assert FoReaLLLM.class_name() == "FoReaLLLM"
    defaults = FoReaLConfig()
    made = FoReaLLLM()
    assert {name: getattr(made, name) for name in SETTINGS} == vars(defaults)


def test_metadata(make: Make, decoder: FoReaLDecoder) -> None:
    metadata = make().metadata
    assert metadata.context_window == decoder.max_context
    assert metadata.num_output == 24
    # Room for prompts, whatever may be written.
    assert make(max_new_tokens=10_000).metadata.num_output <= decoder.max_context // 2
    assert metadata.is_chat_model and metadata.model_name == make().model_name
    assert make(decoder=pair_with_tools()).metadata.is_function_calling_model
    own = make(decoder=pair_with_tools(), messages_to_prompt=str)
    assert not own.metadata.is_function_calling_model


def test_nothing_is_loaded_before_it_is_needed(make: Make) -> None:
    # A context of its own, so that no other model shares the pair.
    llm = FoReaLLLM(max_context=1999, max_new_tokens=2)
    before = Settings._llm
    try:
        Settings.llm = llm
        assert Settings.llm is llm
        assert llm.to_payload()["model_name"] == llm.model_name
        pickle.dumps(llm), llm.to_dict(), repr(llm)
        assert llm._source.loaded is None
        answer = SummaryIndex([TextNode(text="x")]).as_query_engine().query("How many?")
        assert str(answer)
    finally:
        Settings._llm = before
    assert llm.metadata.context_window == 1999
    twin = FoReaLLLM(max_context=1999)
    assert twin._decoder() is llm._decoder() is not make()._decoder()
    assert llm.to_payload()["context_window"] == 1999
    assert llm.to_payload()["settings"]["max_new_tokens"] == 2


def test_dictionaries(make: Make, decoder: FoReaLDecoder) -> None:
    llm = FoReaLLLM(lead_count=3, stop=["x"], timeout=5, system_prompt="s", max_context=1998)
    data = llm.to_dict()
    assert data["class_name"] == "FoReaLLLM" and "decoder" not in data
    again = FoReaLLLM.from_dict(json.loads(json.dumps(data)))
    assert json.dumps(again.to_dict()) == json.dumps(data)
    assert (again.lead_count, list(again.stop), again.system_prompt) == (3, ["x"], "s")
    assert FoReaLLLM.from_json(llm.to_json()).to_json() == llm.to_json()

    given = make().to_dict()
    json.dumps(given)
    with pytest.raises(ConfigError, match="decoder="):
        FoReaLLLM.from_dict(given)
    restored = FoReaLLLM.from_dict(given, decoder=decoder)
    assert thinking_of(restored.chat(chat_of(QUESTION))) == thinking_of(
        make().chat(chat_of(QUESTION))
    )


def test_pickles_carry_no_weights(make: Make) -> None:
    llm = FoReaLLLM(lead_count=3, max_new_tokens=5, seed=1)
    with llm.track_costs() as bill:
        text = thinking_of(llm.chat(chat_of(QUESTION)))
        data = pickle.dumps(llm)
        assert len(data) < 20_000
        for twin in (pickle.loads(data), copy.deepcopy(llm)):
            assert twin.to_dict() == llm.to_dict()
            assert thinking_of(twin.chat(chat_of(QUESTION))) == text
        assert twin._decoder() is llm._decoder()
    assert bill.totals()["calls"] == 1, "a copy has bills of its own"
    with pytest.raises(TypeError, match="leader= and draft="):
        pickle.dumps(make())


def test_a_shallow_copy_pays_to_the_same_bill(make: Make) -> None:
    llm = make()
    with llm.track_costs() as bill:
        llm.model_copy(update={"max_new_tokens": 2}).complete("1")
    assert bill.totals()["completion_tokens"] == 2


# -- without a framework ---------------------------------------------------------------------------

BLOCKED = """
import sys
for name in {names}:
    sys.modules[name] = None
{code}
"""
LANGCHAIN = ["langchain", "langchain_core", "langchain_text_splitters", "langgraph", "langsmith"]
LLAMA_INDEX = ["llama_index", "llama_index.core", "llama_index_instrumentation"]


def run_without(names: list[str], code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(names=names, code=code)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_works_without_langchain() -> None:
    code = """
from llama_index.core import Settings, SummaryIndex
from llama_index.core.schema import TextNode
from foreal_integrations.llama_index import FoReaLLLM
Settings.llm = FoReaLLLM(max_new_tokens=4)
with Settings.llm.track_costs() as bill:
    SummaryIndex([TextNode(text="x")]).as_query_engine().query("How many?")
print(bill.totals()["completion_tokens"])
"""
    assert run_without(LANGCHAIN, code) == "4"


def test_langchain_works_without_llama_index() -> None:
    pytest.importorskip("langchain_core", reason="needs the extra langchain")
    code = """
from foreal_integrations.langchain import ChatFoReaL
print(ChatFoReaL(max_new_tokens=4).invoke("How many?").usage_metadata["output_tokens"])
"""
    assert run_without(LLAMA_INDEX, code) == "4"


def test_a_missing_framework_is_named() -> None:
    code = """
try:
    import foreal_integrations.llama_index
except ImportError as error:
    print(error)
"""
    assert "foreal-decoding[llama-index]" in run_without(LLAMA_INDEX, code)


def test_the_public_names() -> None:
    import foreal_integrations.llama_index as package

    assert set(package.__all__) == {"FoReaLCostEvent", "FoReaLLLM", "RequestRefusedError"}
    assert issubclass(package.FoReaLLLM, LLM)
