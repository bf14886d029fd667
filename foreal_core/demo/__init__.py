"""The bundled demonstration pair: two small models, their tasks and their training.

Importing it loads no torch. The models show that the software works; they are no evidence
for large ones.
"""

from __future__ import annotations

from pathlib import Path

from foreal_core.demo.problems import Problem, problems

__all__ = ["Problem", "pair_paths", "problems"]

PAIR = Path(__file__).parent / "pair"


def pair_paths() -> tuple[Path, Path]:
    """Return the folders of the bundled leader and draft, each loadable by `transformers`."""
    return PAIR / "leader", PAIR / "draft"
