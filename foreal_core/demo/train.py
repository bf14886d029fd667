"""Train the bundled models from scratch: `python -m foreal_core.demo.train --help`.

Seeded; checkpoints go to a run folder, from which an interrupted training goes on. With
`--processes 2` every batch is split over two processes, whose gradients are averaged.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.distributed
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from foreal_core.backends.local.packed_linear import uses_onednn
from foreal_core.demo import PAIR
from foreal_core.demo.corpus import ROLES, SYSTEM_MESSAGES, Role, Sample, batches, conversations
from foreal_core.demo.tokenizer import MAX_TOKENS, load_tokenizer, train_tokenizer

_SMALL = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
_SHAPES: dict[Role, dict[str, int]] = {
    "leader": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "draft": _SMALL,
    "instruct": _SMALL,
}
_RATE, _ADAM_SHARE = 0.02, 0.2  # of Muon; AdamW's share of it, also where it is alone
_WARM_UP = 0.01  # of the budget, for the learning rate to rise
_SAVE_SECONDS = 180.0
_PAD_MULTIPLE = 32  # few distinct shapes: memory is reused and kernels are not chosen anew
_CAUSAL, _STRIPS = "causal_in_strips", 4


@dataclass
class _Progress:
    """Progress of a training, as its checkpoint keeps it."""

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


def _causal_in_strips(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention, [B, H, T, d], a strip of queries at a time against the keys before it.

    Forward and backward take half of the time of PyTorch's kernel (32 rows of 352 bfloat16
    positions, one core of an AMD EPYC).
    """
    length = query.shape[2]
    height = length // _STRIPS
    strips = []
    for start in range(0, length, height):
        end = start + height
        ahead = query.new_full((height, end), float("-inf")).triu(start + 1)
        scores = (query[:, :, start:end] * scaling) @ key[:, :, :end].transpose(-1, -2) + ahead
        strips.append(scores.softmax(-1, dtype=value.dtype) @ value[:, :, :end])
    return torch.cat(strips, dim=2).transpose(1, 2), None


def _no_mask(**kwargs: object) -> None:
    """Samples are padded on the right, where causal attention never looks."""


AttentionInterface.register(_CAUSAL, _causal_in_strips)
AttentionMaskInterface.register(_CAUSAL, _no_mask)


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


def train(role: Role, run: Path, budget: _Budget, size: int, seed: int, rate: float) -> None:
    """Train one model in batches of `size` samples, at most at `rate`, until the budget is spent.

    Goes on from `run`/<role>.pt where that exists. One of `world` processes of
    `torch.distributed`, where that is initialised; the first one writes.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    together = torch.distributed.is_initialized()
    rank, world = (
        (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
    )
    tokenizer = load_tokenizer(run / "tokenizer")
    model = _new_model(role, tokenizer)
    in_bfloat16 = uses_onednn(torch.bfloat16)
    optimizers, rates = _optimizers(model, rate, muon=in_bfloat16)
    progress = _Progress()
    checkpoint = run / f"{role}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        if "optimizers" in state:  # else these are weights to start from
            if len(state["optimizers"]) != len(optimizers):
                raise SystemExit(
                    f"{checkpoint} is from a processor that trains otherwise (bfloat16 or not): go "
                    "on there, or start from its exported weights."
                )
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            progress = _Progress(**state["progress"])
    model.set_attn_implementation(_CAUSAL)
    started = time.monotonic() - progress.seconds
    saved_at = time.monotonic()
    for samples in batches(role, tokenizer, seed, size, start=progress.batches):
        factor = _learning_rate_factor(budget.spent(progress))
        for optimizer, peak in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        ids, learned = _collate(samples[rank::world], tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            # Position i predicts token i + 1; the head runs only where that is learned.
            targets = learned[:, 1:]
            logits = model.lm_head(hidden[:, :-1][targets])
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][targets])
        loss.backward()
        progress.seconds = time.monotonic() - started
        if together:
            progress.seconds = _averaged(model, progress.seconds)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.batches += 1
        progress.tokens += sum(len(sample.ids) for sample in samples)
        if rank == 0 and progress.batches % 10 == 0:
            speed = progress.tokens / progress.seconds
            print(
                f"{role} batch {progress.batches} tokens {progress.tokens / 1e6:.2f}M "
                f"loss {loss.item():.4f} {speed:.0f} tokens/s",
                flush=True,
            )
        finished = budget.spent(progress) >= 1.0
        if rank == 0 and (finished or time.monotonic() - saved_at > _SAVE_SECONDS):
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


def _optimizers(
    model: LlamaForCausalLM, rate: float, *, muon: bool
) -> tuple[list[torch.optim.Optimizer], list[float]]:
    """Muon for matrices and AdamW for the rest, or AdamW alone, and the highest rate of each.

    Muon multiplies in bfloat16 whatever its parameters are, which takes longer than all else on a
    processor without instructions for it (AVX2).
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    slow = _ADAM_SHARE * rate
    adam = torch.optim.AdamW(
        others if muon else [*matrices, *others], lr=slow, betas=(0.9, 0.95), weight_decay=0.0
    )
    if not muon:
        return [adam], [slow]
    return [torch.optim.Muon(matrices, lr=rate, weight_decay=0.01), adam], [rate, slow]


def _averaged(model: LlamaForCausalLM, seconds: float) -> float:
    """Average all processes' gradients, in place, and their clocks: they must stop together."""
    gradients = [p.grad for p in model.parameters()]
    flat = torch.cat([torch.tensor([seconds]), *(g.flatten() for g in gradients)])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, part in zip(
        gradients, flat[1:].split([g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))
    return flat[0].item()


def _train_as(
    rank: int,
    world: int,
    role: Role,
    run: Path,
    budget: _Budget,
    size: int,
    seed: int,
    rate: float,
) -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    try:
        train(role, run, budget, size, seed, rate)
    finally:
        torch.distributed.destroy_process_group()


def make_tokenizer(run: Path) -> None:
    """Train the tokenizer on all kinds of chats and save it to `run`/tokenizer."""
    blank = train_tokenizer(["x"])  # for its template
    texts = [*SYSTEM_MESSAGES, "system", "user", "assistant", "tool"] * 2
    for role in ROLES:
        for chat, spans in islice(conversations(role, Random(0)), 3000):
            rendered = blank.apply_chat_template(**chat, tokenize=False)
            texts += [*rendered.split(blank.eos_token), "".join(span.text for span in spans)]
    special = (*blank.all_special_tokens, "<|im_start|>", "<think>", "</think>")
    for mark in special:
        texts = [text.replace(mark, "\n") for text in texts]
    train_tokenizer(texts).save_pretrained(run / "tokenizer")


def start_from(role: Role, run: Path, folder: Path) -> None:
    """Write a first checkpoint from the weights of a `transformers` folder of the same shape.

    Its tokenizer may be another one: embeddings are carried over by what the token says, and what
    it does not know starts afresh.
    """
    torch.manual_seed(0)
    tokenizer, former = load_tokenizer(run / "tokenizer"), load_tokenizer(folder)
    model = _new_model(role, tokenizer)
    source = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    known = former.get_vocab()
    shared = [(new, known[token]) for token, new in tokenizer.get_vocab().items() if token in known]
    new_ids, old_ids = (torch.tensor(ids) for ids in zip(*shared, strict=True))
    name = "model.embed_tokens.weight"
    weights = source.state_dict() | {name: model.state_dict()[name].clone()}
    weights[name][new_ids] = source.state_dict()[name][old_ids]
    weights["lm_head.weight"] = weights[name]
    model.load_state_dict(weights)
    torch.save({"model": model.state_dict()}, run / f"{role}.pt")
    print(f"{len(shared)} of {len(tokenizer)} embeddings carried over")


def export(role: Role, run: Path, target: Path) -> None:
    """Write the model as a `transformers` folder: weights (float32), configs, tokenizer."""
    tokenizer = load_tokenizer(run / "tokenizer")
    model = _new_model(role, tokenizer)
    state = torch.load(run / f"{role}.pt", weights_only=True)
    model.load_state_dict(state["model"])
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=1024,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    print(f"{target}: {json.dumps(state['progress'])}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sub-command."""
    parser = argparse.ArgumentParser(prog="foreal_core.demo.train", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/pair"), help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tokenizer", help="train the tokenizer")
    for role in ROLES:
        command = commands.add_parser(role, help=f"train this model ({role}), or go on training it")
        command.add_argument("--tokens", type=float, default=20e6, help="budget")
        command.add_argument("--minutes", type=float, help="budget instead of --tokens")
        command.add_argument("--batch", type=int, default=32, help="samples per step")
        command.add_argument("--rate", type=float, default=_RATE, help="highest learning rate")
        command.add_argument("--processes", type=int, default=1, help="that share each batch")
    command = commands.add_parser("start", help="start from the weights of another folder")
    command.add_argument("role", choices=ROLES)
    command.add_argument("folder", type=Path)
    command = commands.add_parser("export", help="write a checkpoint as a transformers folder")
    command.add_argument("role", choices=ROLES)
    command.add_argument("target", type=Path, nargs="?", help="default: the bundled place")
    options = parser.parse_args(arguments)
    if options.command == "tokenizer":
        make_tokenizer(options.run)
    elif options.command == "start":
        start_from(options.role, options.run, options.folder)
    elif options.command == "export":
        export(options.role, options.run, options.target or PAIR / options.role)
    else:
        budget = _Budget(options.tokens, options.minutes)
        job = (options.command, options.run, budget, options.batch, options.seed, options.rate)
        if options.processes == 1:
            train(*job)
        else:
            spawn(_train_as, (options.processes, *job), nprocs=options.processes)


if __name__ == "__main__":
    main()
