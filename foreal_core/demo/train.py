"""Train the bundled pair from scratch: `python -m foreal_core.demo.train --help`.

Seeded; checkpoints go to a run folder, from which an interrupted training goes on. On one CPU
core the leader takes about an hour and the draft a quarter of one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foreal_core.demo import check, pair_paths
from foreal_core.demo.corpus import SYSTEM_MESSAGES, Role, Sample, batches
from foreal_core.demo.ledger import puzzles
from foreal_core.demo.problems import problems
from foreal_core.demo.tokenizer import MAX_TOKENS, load_tokenizer, train_tokenizer
from foreal_core.demo.traces import Recipe, reason

_SHAPES: dict[Role, dict[str, int]] = {
    "leader": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "draft": {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
}
_MUON_RATE, _ADAM_RATE = 0.02, 0.004
_WARM_UP = 0.01  # of the budget, for the learning rate to rise
_SAVE_SECONDS = 180.0
_PAD_MULTIPLE = 32  # few distinct shapes: memory is reused and kernels are not chosen anew


@dataclass
class _Progress:
    """Where a training stands."""

    batches: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Budget:
    """How long to train: tokens (padding not counted) or, if given, minutes of wall clock."""

    tokens: float
    minutes: float | None

    def spent(self, progress: _Progress) -> float:
        """Return the share that is spent."""
        if self.minutes is not None:
            return progress.seconds / (60.0 * self.minutes)
        return progress.tokens / self.tokens


def _learning_rate_factor(done: float) -> float:
    """Return the factor at share `done` of the budget: flat, then falling to 0 from one half on."""
    return max(0.0, min(1.0, done / _WARM_UP + 0.05, 2.0 * (1.0 - done)))


def _collate(samples: Sequence[Sample], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and learned flags, both (batch, longest); padding is on the right.

    No attention mask is needed: causal attention never looks to the right.
    """
    longest = max(len(sample.ids) for sample in samples)
    longest += -longest % _PAD_MULTIPLE
    ids = torch.full((len(samples), longest), pad)
    learned = torch.zeros((len(samples), longest), dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        learned[row, : len(sample.ids)] = torch.tensor(sample.learned)
    return ids, learned


def _new_model(role: Role, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            **_SHAPES[role],
            vocab_size=len(tokenizer),
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            dtype="float32",
        )
    )


def train(role: Role, run: Path, budget: _Budget, size: int, seed: int) -> None:
    """Train one model in batches of `size` samples until the budget is spent.

    Goes on from `run`/<role>.pt where that exists.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(run / "tokenizer")
    model = _new_model(role, tokenizer)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=_MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=_ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    progress = _Progress()
    checkpoint = run / f"{role}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        progress = _Progress(**state["progress"])
    rates = (_MUON_RATE, _ADAM_RATE)
    body = torch.compile(model.model, dynamic=True)
    started = time.monotonic() - progress.seconds
    saved_at = time.monotonic()
    for samples in batches(role, tokenizer, seed, size, start=progress.batches):
        factor = _learning_rate_factor(budget.spent(progress))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        ids, learned = _collate(samples, tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = body(input_ids=ids, use_cache=False).last_hidden_state
            # Position i predicts token i + 1; the head runs only where that is learned.
            targets = learned[:, 1:]
            logits = model.lm_head(hidden[:, :-1][targets])
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][targets])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.batches += 1
        progress.tokens += sum(len(sample.ids) for sample in samples)
        progress.seconds = time.monotonic() - started
        if progress.batches % 10 == 0:
            speed = progress.tokens / progress.seconds
            print(
                f"{role} batch {progress.batches} tokens {progress.tokens / 1e6:.2f}M "
                f"loss {loss.item():.4f} {speed:.0f} tokens/s",
                flush=True,
            )
        finished = budget.spent(progress) >= 1.0
        if finished or time.monotonic() - saved_at > _SAVE_SECONDS:
            saved_at = time.monotonic()
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "progress": vars(progress),
            }
            unfinished = checkpoint.with_suffix(".tmp")
            torch.save(state, unfinished)
            unfinished.replace(checkpoint)
        if finished:
            return


def make_tokenizer(run: Path) -> None:
    """Train the tokenizer on both styles of task text and save it to `run`/tokenizer."""
    texts = [*SYSTEM_MESSAGES, "system", "user", "assistant"] * 2
    for index, puzzle in enumerate(islice(puzzles(0, held_out=False), 4000)):
        recipe = Recipe(terse_share=0.4, error_rate=0.2)
        spans = reason(puzzle, Random(index), recipe)
        texts += [puzzle.question, "".join(span.text for span in spans)]
    train_tokenizer(texts).save_pretrained(run / "tokenizer")


def export(role: Role, run: Path, target: Path) -> None:
    """Write the model as a `transformers` folder: weights (float32), configs, tokenizer."""
    tokenizer = load_tokenizer(run / "tokenizer")
    model = _new_model(role, tokenizer)
    model.load_state_dict(torch.load(run / f"{role}.pt", weights_only=True)["model"])
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=1024,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def evaluate(pair: Path, count: int, mixed: int, seed: int, only: str | None) -> None:
    """Print accuracies of both models, of the draft's tails and of both models together."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(pair / "leader")
    leader, draft = (
        LlamaForCausalLM.from_pretrained(pair / role).eval() for role in ("leader", "draft")
    )
    tasks = problems("ledger", seed, max(count, mixed))
    if only in (None, "tails"):
        share, wrong = check.tails(draft, tokenizer, lead_count=15)
        print(f"tails after 15 tokens: {share:.2%} right", *wrong[:10], sep="\n  ", flush=True)
    if only in (None, "draft"):
        print("draft alone:", check.alone(draft, tokenizer, tasks[:count], led=0.0), flush=True)
    if only in (None, "leader"):
        print("leader alone:", check.alone(leader, tokenizer, tasks[:count], led=1.0), flush=True)
    if only in (None, "pair"):
        for probability in (1.0, 0.6):
            score = check.together(leader, draft, tokenizer, tasks[:mixed], 15, probability)
            print(f"both, n=15, p={probability}:", score, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sub-command."""
    parser = argparse.ArgumentParser(prog="foreal_core.demo.train", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/pair"), help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer", help="train the tokenizer")
    for role in ("leader", "draft"):
        command = commands.add_parser(role, help=f"train the {role}, or go on training it")
        command.add_argument("--tokens", type=float, default=20e6, help="budget")
        command.add_argument("--minutes", type=float, help="budget instead of --tokens")
        command.add_argument("--batch", type=int, default=32, help="samples per step")
    command = commands.add_parser("export", help="write a checkpoint as a transformers folder")
    command.add_argument("role", choices=("leader", "draft"))
    command.add_argument("target", type=Path, nargs="?", help="default: the bundled place")
    command = commands.add_parser("evaluate", help="check the exported pair on held-out problems")
    command.add_argument("--pair", type=Path, default=pair_paths()[0].parent)
    command.add_argument("--count", type=int, default=200, help="problems for each model alone")
    command.add_argument("--mixed", type=int, default=100, help="problems for both together")
    command.add_argument("--only", choices=("leader", "draft", "tails", "pair"))
    options = parser.parse_args(arguments)
    if options.command == "tokenizer":
        make_tokenizer(options.run)
    elif options.command == "export":
        bundled = dict(zip(("leader", "draft"), pair_paths(), strict=True))
        export(options.role, options.run, options.target or bundled[options.role])
    elif options.command == "evaluate":
        evaluate(options.pair, options.count, options.mixed, options.seed, options.only)
    else:
        budget = _Budget(options.tokens, options.minutes)
        train(options.command, options.run, budget, options.batch, options.seed)


if __name__ == "__main__":
    main()
