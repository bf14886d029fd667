"""The bundled demonstration pair: two small models, their tasks and their training.

Importing it loads no torch. The models show that the software works; they are no evidence
for large ones.
"""

from __future__ import annotations

from pathlib import Path

from foreal_core.demo.problems import DOMAINS, Problem, problems
from foreal_core.errors import ConfigError

__all__ = ["DOMAINS", "DRAFTS", "PAIR", "Problem", "pair_paths", "problems"]

PAIR = Path(__file__).parent / "pair"
# Kind of draft -> its folder: one that reasons, tersely, and one that answers at once.
DRAFTS = {"reasoning": "draft", "instruct": "instruct"}


def pair_paths(draft: str = "reasoning") -> tuple[Path, Path]:
    """Return the folders of the bundled leader and of a draft, each loadable by `transformers`.

    Raises ConfigError for an unknown kind of draft.
    """
    if draft not in DRAFTS:
        raise ConfigError(f"unknown draft {draft!r}; the drafts are: {', '.join(DRAFTS)}")
    return PAIR / "leader", PAIR / DRAFTS[draft]
