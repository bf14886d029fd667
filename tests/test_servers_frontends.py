"""Commands, frameworks and the server over the addresses of two inference servers: what they write,
and what they make of a bill whose FLOPs nobody knows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from server_pairs import bundled_servers
from transformers import AutoTokenizer

from foreal_core import ConfigError, FoReaLConfig, FoReaLDecoder
from foreal_core.cli import main
from foreal_core.demo import grounded, pair_paths
from foreal_core.policies import Budget
from foreal_core.report.html import trace

UNKNOWN = {"leader": None, "draft": None, "total": None, "leader_only": None}
QUESTION = "What is 17 * 24?"


@pytest.fixture(scope="module")
def pair() -> Iterator[list[str]]:
    with bundled_servers() as urls:
        yield urls


@pytest.fixture(scope="module")
def unknown() -> Iterator[FoReaLDecoder]:
    """A pair of whose sizes nothing is known."""
    tokenizer = AutoTokenizer.from_pretrained(str(pair_paths()[0]))
    tokenizer.name_or_path = ""
    with (
        bundled_servers(known=False) as urls,
        FoReaLDecoder.connect(*urls, tokenizer=tokenizer) as decoder,
    ):
        yield decoder


def named(urls: Sequence[str]) -> list[str]:
    return ["--leader", urls[0], "--draft", urls[1]]


def test_eval_asks_servers_what_it_asks_models_here(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["eval", "--suite", "ordering", "--count", "2", "--max-new-tokens", "40"]
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert main([*asked, "--out", str(here)]) == 0
    assert main([*asked, "--out", str(there), *named(pair)]) == 0
    records = [json.loads(path.read_text()) for path in (here, there)]
    texts = [[one["text"] for one in record["answers"]] for record in records]
    assert texts[0] == texts[1]
    assert records[0]["flops_written"] == records[1]["flops_written"]
    # What the record holds is shown again and not asked again.
    shown = capsys.readouterr().out.splitlines()[-1]
    assert main([*asked, "--out", str(there), *named(pair)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == shown


def test_a_sweep_runs_over_servers(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.json"
    asked = ["sweep", "--grid", "lead_count=1,4", "--count", "1", "--max-new-tokens", "8"]
    assert main([*asked, "--suite", "ordering", "--out", str(out), *named(pair)]) == 0
    assert "leader alone" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["runs"]) == 3


def test_a_pair_behind_servers_is_served(pair: list[str]) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from foreal_core.cli.common import PairOptions

    with (
        PairOptions(*pair).load() as decoder,
        FoReaLDecoder.demo() as local,
        _serving(decoder) as served,
    ):
        content = [{"role": "user", "content": QUESTION}]
        body = {"messages": content, "max_tokens": 24, "seed": 3, "temperature": 0}
        answer = served.post("/v1/chat/completions", body).json()
        text = local.generate(messages=content, max_new_tokens=24, seed=3)
        assert answer["usage"]["completion_tokens"] == len(text.token_ids)
        assert served.both(messages=content, max_tokens=24, seed=3, temperature=0)


@contextlib.contextmanager
def _serving(decoder: FoReaLDecoder) -> Iterator[Any]:
    import sys

    sys.path.insert(0, str(Path(__file__).parent / "serve"))
    try:
        from served import serving

        with serving(decoder) as served:
            yield served
    finally:
        sys.path.pop(0)


def test_langchain_writes_over_servers_what_it_writes_here(pair: list[str]) -> None:
    pytest.importorskip("langchain_core", reason="needs the extra langchain")
    from foreal_integrations.langchain import ChatFoReaL, FoReaLLLM, get_foreal_cost_callback

    settings: dict[str, Any] = {"max_new_tokens": 24, "seed": 1}
    for kind in (ChatFoReaL, FoReaLLLM):
        here = kind(**settings)
        there = kind(leader=pair[0], draft=pair[1], **settings)
        with get_foreal_cost_callback() as bill:
            assert said(there.invoke(QUESTION)) == said(here.invoke(QUESTION))
        assert bill.totals()["calls"] == 2 and bill.totals()["flops_written"]["total"] > 0
        assert streamed(there) == streamed(here)
        asked = [QUESTION, "Add 3 and 4."]
        assert list(map(said, there.batch(asked))) == list(map(said, here.batch(asked)))


def said(answer: Any) -> Any:
    """A text, or what of a message has no id and no seconds."""
    return answer if isinstance(answer, str) else (answer.content, answer.tool_calls)


def streamed(model: Any) -> str:
    parts = [part if isinstance(part, str) else part.content for part in model.stream(QUESTION)]
    return "".join(parts)


def test_an_agent_runs_over_servers(pair: list[str]) -> None:
    """The cookbook's cells with another constructor."""
    pytest.importorskip("langchain.agents", reason="needs langchain")
    from langchain.agents import create_agent
    from langchain_core.tools import tool

    from foreal_integrations.langchain import ChatFoReaL

    @tool
    def add(a: int, b: int) -> int:
        """Add two whole numbers."""
        return a + b

    said = []
    for where in ({}, {"leader": pair[0], "draft": pair[1]}):
        chat = ChatFoReaL(max_new_tokens=120, seed=1, **where)
        agent = create_agent(chat, tools=[add])
        messages = agent.invoke({"messages": [("user", "What is 41 plus 27?")]})["messages"]
        said.append([(one.type, one.content) for one in messages])
    assert said[0] == said[1]
    with pytest.raises(Exception, match="need both models in this process"):
        chat.bind_tools([add], tool_choice="any").invoke(QUESTION)


def test_a_query_engine_runs_over_servers(pair: list[str]) -> None:
    """The cookbook's cells with another constructor."""
    pytest.importorskip("llama_index.core", reason="needs the extra llama-index")
    from llama_index.core import SummaryIndex
    from llama_index.core.schema import TextNode

    from foreal_integrations.llama_index import FoReaLLLM

    lists = grounded.corpus(Random(5), 2, held_out=True)
    index = SummaryIndex([TextNode(text=one.text, id_=one.box) for one in lists])
    asked = grounded.ask(Random(1), lists)
    answers = []
    for where in ({}, {"leader": pair[0], "draft": pair[1]}):
        llm = FoReaLLLM(lead_probability=1.0, seed=1, max_new_tokens=200, **where)
        engine = index.as_query_engine(llm=llm, streaming=True, response_mode="compact")
        with llm.track_costs() as bill:
            answers.append("".join(engine.query(asked.query).response_gen))
        assert bill.totals()["calls"] == 1
    assert answers[0] == answers[1] != ""


def test_what_nobody_knows_is_null_in_every_bill(unknown: FoReaLDecoder, tmp_path: Path) -> None:
    written = unknown.generate(QUESTION, max_new_tokens=12)
    record = json.loads(json.dumps(written.cost.to_dict(), allow_nan=False))
    assert record["flops"] == record["flops_written"] == record["weight_bytes"] == UNKNOWN
    assert record["leader_tokens"] + record["draft_tokens"] == len(written.token_ids)
    assert "unknown" in trace(written.to_dict())
    assert unknown.generate(QUESTION, max_new_tokens=12, budget=Budget(tokens=4)).token_ids
    with pytest.raises(ConfigError, match="a budget of written_flops needs the sizes of the"):
        unknown.generate(QUESTION, budget=Budget(written_flops=0.5))


def test_commands_show_a_bill_that_nobody_knows(
    unknown: FoReaLDecoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from foreal_core.cli.terminal import cost_view, eval_view
    from foreal_core.evaluation import evaluate, load_suite
    from foreal_core.evaluation.points import Point
    from foreal_core.evaluation.sweep import Sweep, run_sweep

    suite = load_suite("ordering", count=2)
    base = FoReaLConfig(max_new_tokens=8, seed=1)
    record = evaluate(unknown, suite.tasks, base, suite="ordering").to_dict()
    assert json.loads(json.dumps(record, allow_nan=False))["flops_written"] == UNKNOWN
    console = Console(width=200)
    written = unknown.generate(QUESTION, max_new_tokens=4)
    for part in (*eval_view(record), *cost_view(written.cost.to_dict())):
        console.print(part)
    assert capsys.readouterr().out.count("unknown") == 4 * 3 * 2 + 3
    sweep = Sweep(
        points=[Point.of("", base, lead_count=1)],
        suites=[suite],
        base=base,
        drafts={"": "d"},
        leader="l",
        batch_size=1,
    )
    with pytest.raises(ConfigError, match="a sweep compares costs"):
        run_sweep(sweep, lambda name: contextlib.nullcontext(unknown), tmp_path / "s.json")


def test_frameworks_add_up_bills_that_nobody_knows(unknown: FoReaLDecoder) -> None:
    pytest.importorskip("langchain_core", reason="needs the extra langchain")
    from foreal_integrations.langchain import ChatFoReaL, get_foreal_cost_callback

    chat = ChatFoReaL(decoder=unknown, max_new_tokens=6, seed=1)
    with get_foreal_cost_callback() as bill:
        chat.invoke(QUESTION)
        list(chat.stream(QUESTION))
    totals = bill.totals()
    assert totals["calls"] == 2 and totals["flops"] == UNKNOWN
    assert str(bill).count("unknown") == 3


def test_llama_index_adds_up_bills_that_nobody_knows(unknown: FoReaLDecoder) -> None:
    pytest.importorskip("llama_index.core", reason="needs the extra llama-index")
    from foreal_integrations.llama_index import FoReaLLLM

    llm = FoReaLLLM(decoder=unknown, max_new_tokens=6, seed=1)
    with llm.track_costs() as bill:
        llm.complete(QUESTION)
    assert bill.totals()["weight_bytes"] == UNKNOWN
    assert "unknown" in bill.generations[-1]._repr_html_()


def test_the_server_serves_a_pair_of_unknown_sizes(unknown: FoReaLDecoder) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    with _serving(unknown) as served:
        [model] = served.client.get("/v1/models").json()["data"]
        assert model["foreal"]["cost"]["leader"] == {"flops": None, "weight_bytes": None}
        answer = served.chat(max_tokens=4)
        assert answer["foreal"]["flops"] == UNKNOWN
        page = served.client.get("/metrics").text
    assert "foreal:generation_tokens_total" in page and "nan" not in page.lower()
