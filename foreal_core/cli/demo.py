"""`foreal demo`: the bundled pair at work."""

from __future__ import annotations

from typing import Any

from rich.panel import Panel
from rich.text import Text

from foreal_core.cli.common import CommandConsole, PairOptions, print_parts, write_stream
from foreal_core.cli.settings import takes_settings
from foreal_core.cli.terminal import LiveText, cost_view
from foreal_core.config import FoReaLConfig


@takes_settings
def demo(settings: dict[str, Any]) -> int:
    """Let the bundled pair solve a word problem that it has never seen.

    --seed picks the problem and the gate's draws.
    """
    from foreal_core.demo import problems

    console = CommandConsole(highlight=False)
    seed = settings.setdefault("seed", 1)
    config = FoReaLConfig(**settings)
    [problem] = problems("ledger", seed, 1)
    console.print(Panel(Text(problem.question), title=f"Problem {seed}", title_align="left"))
    with PairOptions().load() as decoder:
        code, generation = write_stream(
            decoder, {"messages": problem.messages}, config, LiveText(console)
        )
    if problem.is_correct(generation.text):
        verdict = "Right"
    else:
        verdict = "Wrong" if generation.finish_reason == "stop" else "Not finished"
    console.print(f"\n{verdict}: the answer is {problem.answer}.", style="bold", markup=False)
    print_parts(console, cost_view(generation.cost.to_dict()))
    return code
