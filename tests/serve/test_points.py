"""What the pages say of the server: tests that they name exist, code that they show runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from served import Served

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "serve.md"
SHOWN = re.findall(
    r"<!-- needs a server -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
)


def test_every_point_has_a_test() -> None:
    page = (FOLDER / "points.md").read_text(encoding="utf-8")
    points = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in points] == list(range(1, 33))
    code = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("test_*.py"))
    written = set(re.findall(r"def (test_\w+)", code))
    for number, shown in points:
        named = re.findall(r"`(test_\w+)`", shown)
        assert named and set(named) <= written, number


@pytest.mark.parametrize("code", SHOWN, ids=["openai", "langchain", "llama_index"])
def test_code_of_the_page_runs(
    code: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in re.findall(r"^from ([\w.]+)", code, re.MULTILINE):
        pytest.importorskip(module)
    exec(compile(code.replace("http://127.0.0.1:8000", served.url), str(PAGE), "exec"), {})
    assert capsys.readouterr().out.strip()
