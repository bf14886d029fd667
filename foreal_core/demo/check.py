"""Can a draft finish the leader's sentences? `python -m foreal_core.demo.check FOLDER`.

A pair is only worth measuring if its draft completes what the leader has begun: then what the
method gains or loses is a matter of planning.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch

from foreal_core.demo.chains import reason
from foreal_core.demo.puzzles import DOMAINS, puzzles
from foreal_core.demo.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Tails:
    """How many tails of the leader's sentences a model finishes as they stand, in every token.

    `wrong` holds the others: the sentence, and what the model would have written at each place.
    """

    right: int
    wrong: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share that is right."""
        return self.right / (self.right + len(self.wrong))


@torch.inference_mode()
def tails(
    model: Any, tokenizer: Any, domain: str, *, lead_count: int = 15, count: int = 100
) -> Tails:
    """Measure what follows the first `lead_count` tokens of each sentence in `count` held-out
    chains in the leader's style."""
    right, wrong = 0, []
    for index, puzzle in enumerate(islice(puzzles(domain, 0, held_out=True), count)):
        prompt = tokenizer.apply_chat_template(
            puzzle.messages, add_generation_prompt=True, return_dict=False
        )
        spans = [tokenizer(span.text)["input_ids"] for span in reason(puzzle, Random(index), 1.0)]
        written = [token for span in spans for token in span]
        logits = model(torch.tensor([prompt + written])).logits[0]
        guesses = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        start = 0
        for span in spans[:-1]:  # the last one is the answer
            tail = slice(start + lead_count, start + len(span))
            start += len(span)
            if written[tail] == guesses[tail]:
                right += 1
            else:
                wrong.append(f"{tokenizer.decode(span)} | {tokenizer.decode(guesses[tail])}")
    return Tails(right, tuple(wrong))


def main() -> None:
    """Prints the share for each domain, and some of the tails that are wrong."""
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the draft, as a transformers folder")
    parser.add_argument("--lead-count", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(arguments.folder)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder).eval()
    for domain in DOMAINS:
        found = tails(model, tokenizer, domain, lead_count=arguments.lead_count)
        total = found.right + len(found.wrong)
        print(f"{domain}: {found.share:.2%} of {total}", *found.wrong[:5], sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
