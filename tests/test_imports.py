"""The house stands as drawn: imports run one way, the core knows no framework, names are locked."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import WAIT_S

import foreal_core
from foreal_core import errors

ROOT = Path(foreal_core.__file__).parent

# Each package (or file of `foreal_core`) may import those before it in this list, and itself.
ORDER = (
    *("errors", "randomness", "extras", "numbers", "settings_file", "cost", "policies"),
    *("config", "events"),
    *("text", "grammar", "prompts", "request", "records"),
    *("backends", "engine", "calls", "first_finish", "loading", "decoder"),
    *("chat", "demo", "evaluation", "analysis", "report", "benchmark", "serve", "cli"),
)
# An error carries what its request had cost; a notebook's view of a Generation is drawn by the
# report, which imports nothing of the core; the bundled pair is found by its folder.
EXCEPTIONS = {("errors", "cost"), ("events", "report"), ("decoder", "demo"), ("chat", "demo")}
WITHOUT_TORCH = (
    *("errors", "randomness", "extras", "numbers", "settings_file", "cost", "policies"),
    *("config", "events"),
    *("text", "grammar", "prompts", "request", "engine"),
)

PUBLIC = {
    "FoReaLDecoder",
    "FoReaLConfig",
    "Generation",
    "CostReport",
    "TokenEvent",
    "TokenLogprobs",
    "Segment",
    "Sentence",
    "TokenStream",
    "AsyncTokenStream",
    "FoReaLError",
    "ConfigError",
    "ModelLoadError",
    "UnsupportedModelError",
    "IncompatibleModelsError",
    "ContextOverflowError",
    "OutOfMemoryError",
    "NonFiniteLogitsError",
    "EngineClosedError",
    "QueueFullError",
    "ServerError",
    "Prompt",
    "Backend",
    "Budget",
    "SpanReport",
    "register_policy",
}


def modules() -> dict[str, list[Path]]:
    """Files of each module of the core; a package's files belong to the package."""
    found: dict[str, list[Path]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").parts[0]
        if name not in ("__init__", "__main__"):
            found.setdefault(name, []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too, except for type checkers alone."""
    names: set[str] = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            name = ast.unparse(node.test)
            return None if name.endswith("TYPE_CHECKING") else self.generic_visit(node)

    return ast.fix_missing_locations(Drop().visit(tree))


def core_imports(name: str) -> set[str]:
    """Modules of the core that a module of the core imports."""
    known = modules()
    dotted = {one for path in known[name] for one in imported(path)}
    parts = [one.split(".") for one in dotted]
    return {p[1] for p in parts if p[0] == "foreal_core" and len(p) > 1 and p[1] in known} - {name}


def test_every_package_has_its_place() -> None:
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name: str) -> None:
    for other in core_imports(name):
        below = ORDER.index(other) < ORDER.index(name)
        assert below or (name, other) in EXCEPTIONS, f"{name} imports {other}, which stands above"


@pytest.mark.parametrize("name", sorted(modules()))
def test_the_core_knows_no_framework(name: str) -> None:
    foreign = {"langchain", "langchain_core", "llama_index", "foreal_integrations"}
    for path in modules()[name]:
        assert not {one.split(".")[0] for one in imported(path)} & foreign


def _modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_modules_without_torch(name: str) -> None:
    for path in modules()[name]:
        assert not {one.split(".")[0] for one in imported(path)} & {"torch", "transformers"}
    # What they import is free of it as well.
    for other in core_imports(name):
        assert other in (*WITHOUT_TORCH, "report", "backends")


def test_the_report_reads_records_only() -> None:
    assert core_imports("report") == set()


def test_settings_and_records_do_not_cost_the_import_of_torch() -> None:
    names = ", ".join(f"foreal_core.{name}" for name in WITHOUT_TORCH)
    assert not _modules_after(f"import foreal_core, {names}") & {"torch", "transformers"}


def test_importing_the_package_loads_no_models() -> None:
    assert not _modules_after("import foreal_core") & {"torch", "transformers"}
    loaded = _modules_after("import foreal_core; foreal_core.FoReaLDecoder")
    assert not [
        name for name in loaded if name.startswith("transformers.models.") and "modeling_" in name
    ]
    assert not [name for name in loaded if name.split(".")[0] in ("langchain_core", "llama_index")]


def test_public_names() -> None:
    assert set(foreal_core.__all__) - {"__version__"} == PUBLIC
    for name in PUBLIC:
        assert callable(getattr(foreal_core, name)), name


def test_every_error_is_public_and_in_one_tree() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert tree <= PUBLIC
    assert all(issubclass(getattr(errors, name), errors.FoReaLError) for name in tree)
    # Frameworks swallow a ValueError while they assemble an answer: only arguments may be one.
    assert {name for name in tree if issubclass(getattr(errors, name), ValueError)} == {
        "ConfigError"
    }
    running = {"ContextOverflowError", "OutOfMemoryError", "NonFiniteLogitsError"}
    assert all(issubclass(getattr(errors, name), RuntimeError) for name in running)
