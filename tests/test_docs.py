"""The pages say what code and records say, their links lead somewhere, and their code runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from test_imports import ORDER, WITHOUT_TORCH

from foreal_core.cost import CostReport
from foreal_core.policies import policy_names, unregister_policy

ROOT = Path(__file__).parents[1]
CORE = ROOT / "foreal_core"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("findings/*.md"))
)
FINDINGS = sorted(ROOT.glob("findings/*.sh"))
# What stands before code that is not run here; tests/serve runs what docs/serve.md has of it.
NOT_RUN = ("<!-- needs the hub -->\n", "<!-- needs a server -->\n")
# What a page's code needs, by a word in it.
FRAMEWORKS = {"langchain": "langchain_core", "llama_index": "llama_index.core"}


def page_text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAGES)
def test_what_is_generated_is_up_to_date(name: str, generate: ModuleType) -> None:
    page = page_text(name)
    assert generate.rewritten(page) == page, "run python docs/generate.py"


def test_blocks_are_rewritten_where_they_stand(generate: ModuleType) -> None:
    page = "before\n<!-- generated: policies -->\nstale\n<!-- /generated -->\nafter\n"
    new = generate.rewritten(page)
    assert new.startswith("before\n<!-- generated: policies -->\n| policy |")
    assert new.endswith("<!-- /generated -->\nafter\n") and "stale" not in new
    assert generate.rewritten(new) == new


def test_every_setting_policy_and_command_has_its_place(generate: ModuleType) -> None:
    settings, commands = page_text("docs/settings.md"), page_text("docs/commands.md")
    for block in (generate.settings(), generate.policies()):
        assert block in settings
    assert generate.commands() in commands


def test_links_lead_somewhere() -> None:
    broken = []
    for name in PAGES:
        text = page_text(name)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http:", "https:")):
                continue
            path, _, anchor = target.partition("#")
            to = ((ROOT / name).parent / path).resolve() if path else ROOT / name
            if not to.exists() or (anchor and anchor not in anchors(to)):
                broken.append(f"{name}: {target}")
    assert not broken


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_records_that_pages_name_exist() -> None:
    record = re.compile(r"records/[\w.-]+json")
    named = {one for name in PAGES for one in record.findall(page_text(name))}
    assert named and not [one for one in named if not (ROOT / one).is_file()]


def test_the_readme_is_one_page() -> None:
    assert len(page_text("README.md").encode()) < 9 * 1024


def test_the_bill_is_explained_whole() -> None:
    page = page_text("docs/cost.md")
    assert not [one.name for one in fields(CostReport) if f"`{one.name}`" not in page]


def test_the_architecture_names_every_package_and_only_files_that_exist() -> None:
    page = page_text("docs/architecture.md")
    table = page.partition("## Which packages are there?")[2].partition("##")[0]
    named = [
        (name, mark == "*")
        for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
        for name, mark in re.findall(r"`(\w+)`(\*?)", row)
    ]
    assert named == [(name, name in WITHOUT_TORCH) for name in ORDER]
    files = set(re.findall(r"`([\w/]+(?:\.py|/))`", page))
    assert not [one for one in files if not any((root / one).exists() for root in (CORE, ROOT))]


@pytest.fixture
def tidy() -> Iterator[None]:
    """Takes back what a page's code sets for the whole process."""
    known = set(policy_names())
    yield
    for name in set(policy_names()) - known:
        unregister_policy(name)
    if "llama_index.core" in sys.modules:
        sys.modules["llama_index.core"].Settings._llm = None


@pytest.mark.parametrize("name", [name for name in PAGES if "```python\n" in page_text(name)])
def test_code_of_a_page_runs(name: str, tidy: None) -> None:
    page = page_text(name)
    for word, module in FRAMEWORKS.items():
        if f"foreal_integrations.{word}" in page:
            pytest.importorskip(module, reason="needs its framework")
    blocks = re.findall(r"([^\n]*\n)```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python\n")
    for before, code in blocks:
        compiled = compile(code, name, "exec", dont_inherit=True)
        if before not in NOT_RUN:
            exec(compiled, {"__name__": "__page__"})


@pytest.mark.parametrize("script", FINDINGS, ids=lambda script: script.stem)
def test_a_finding_has_its_form(script: Path) -> None:
    """They are not run here: each installs packages of its own."""
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# ") and script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    assert "mktemp -d" in text and "trap 'rm -rf" in text
    [install] = re.findall(r"-m pip install --quiet (.+)", text)
    assert all("==" in package for package in install.split())
    assert "CHANGED" in text and "as stated: " in text
    assert "foreal" not in text.lower(), "it shows another library, without this one"
    assert f"`{script.stem}`" in page_text("findings/README.md")


def test_the_tested_ends_are_those_that_are_allowed() -> None:
    constraints = page_text("constraints.txt")
    [ends] = re.findall(
        r"^# transformers is also tested at: (\S+) (\S+)$", constraints, re.MULTILINE
    )
    [pinned] = re.findall(r"^transformers==(\S+)$", constraints, re.MULTILINE)
    [lowest] = re.findall(r'"transformers>=([\d.]+),', page_text("pyproject.toml"))
    first, pin, last = ([int(n) for n in one.split(".")] for one in (ends[0], pinned, ends[1]))
    assert ends[0].startswith(f"{lowest}.") and first <= pin <= last
