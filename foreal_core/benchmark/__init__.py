"""How fast a pair is on this machine, against transformers, against its models alone, and against
the memory's bandwidth.

`measure` times every method over real prompts into one resumable record; `measure_ratios` takes
four ratios of the bundled pair in about a minute. Methods alternate within each repeat, so that a
change in the machine's load affects all of them, and medians are reported.
`foreal_core.report.speed` turns a record into a table, a verdict and a plot.
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
