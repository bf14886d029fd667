"""How fast a pair is on this machine: against transformers, against its own parts, against what the
memory allows.

`measure` takes every way of writing with a pair over real prompts into one record that can be
resumed; `measure_ratios` takes four ratios of the bundled pair in a minute. What is compared runs
in turn within each repeat, so that a change in the machine's load meets all sides, and medians
count. `foreal_core.report.speed` turns a record into a table, a verdict and a plot.
"""

from __future__ import annotations

from foreal_core.benchmark.methods import METHODS
from foreal_core.benchmark.ratios import measure_ratios
from foreal_core.benchmark.run import measure
from foreal_core.benchmark.selection import Selection
from foreal_core.benchmark.subject import BUNDLED, Subject, load_subject

__all__ = [
    "BUNDLED",
    "METHODS",
    "Selection",
    "Subject",
    "load_subject",
    "measure",
    "measure_ratios",
]
