"""Logits to token ids, drawn by (request seed, position) so that batches do not change the text.

Sampling is the Gumbel-max trick: token = argmax(log-probability + g), where g is Gumbel noise, a
pure function of (seed, position, token id). The draw is exact for any distribution, needs no
generator state, and is the same alone and in any batch. Leader and draft share the noise at a
position, so a draft that thinks like the leader draws the same token: proposals are accepted iff
they equal the leader's own draw, which leaves the leader's distribution untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreal_core.backends.local.device import to_device
from foreal_core.config import FoReaLConfig
from foreal_core.randomness import splitmix64
from foreal_core.request.draws import Draws as Draws

_MASK32 = 0xFFFFFFFF


def draw(
    logits: Tensor,
    settings: Sequence[FoReaLConfig],
    seeds: Sequence[int],
    positions: Sequence[int],
    contexts: Sequence[Sequence[int]],
) -> Draws:
    """Draws one token per row.

    Args:
        logits: [R, V], any float dtype.
        settings: one per row.
        seeds: the request's seed, one per row.
        positions: index of the token in the completion, one per row.
        contexts: all ids before that token, prompt included, as the model reads them; looked at
            only where the row has a repetition penalty.

    Rows with temperature 0 take the arg-max. Warping follows transformers' order: repetition
    penalty, temperature, top-k, top-p, min-p.
    """
    return to_host(draw_on_device(logits, settings, seeds, positions, contexts))


def to_host(drawn: Tensor) -> Draws:
    """What `draw_on_device` gave, in the one small copy of a step."""
    tokens, argmax, finite = drawn.tolist()
    return Draws(tokens, argmax, [bool(flag) for flag in finite])


def draw_on_device(
    logits: Tensor,
    settings: Sequence[FoReaLConfig],
    seeds: Sequence[int],
    positions: Sequence[int],
    contexts: Sequence[Sequence[int]],
) -> Tensor:
    """As `draw`, but the result stays where the logits are: [3, R], its rows those of `Draws`."""
    peak, argmax = logits.max(dim=-1)
    tokens = argmax
    if any(s.repetition_penalty != 1.0 for s in settings):
        logits = _penalised(logits, settings, contexts)
        tokens = logits.argmax(dim=-1)
    sampled = [row for row, s in enumerate(settings) if s.temperature > 0]
    if sampled:
        rows = to_device(sampled, logits.device)
        scores = _warped(logits[rows].float(), [settings[row] for row in sampled])
        noise = gumbel_noise(
            [seeds[row] for row in sampled],
            [positions[row] for row in sampled],
            logits.shape[-1],
            logits.device,
        )
        tokens = tokens.index_copy(0, rows, (scores.double() + noise).argmax(dim=-1))
    return torch.stack([tokens, argmax, torch.isfinite(peak).long()])


def gumbel_noise(
    seeds: Sequence[int], positions: Sequence[int], vocabulary: int, device: torch.device
) -> Tensor:
    """[R, V] standard Gumbel noise in float64, a pure function of (seed, position, token id)."""
    keys = [
        splitmix64(splitmix64(seed) ^ ~position & (2**64 - 1))
        for seed, position in zip(seeds, positions, strict=True)
    ]
    low = to_device([key & _MASK32 for key in keys], device)[:, None]
    high = to_device([key >> 32 for key in keys], device)[:, None]
    ids = torch.arange(vocabulary, device=device)[None, :]
    bits = _lowbias32(_lowbias32(ids ^ low) ^ high)
    uniform = (bits.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(uniform))


def _lowbias32(x: Tensor) -> Tensor:
    """A 32-bit integer hash (Wellons, "Hash Prospector", 2018) on int64 lanes."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def _penalised(
    logits: Tensor, settings: Sequence[FoReaLConfig], contexts: Sequence[Sequence[int]]
) -> Tensor:
    """Divides positive and multiplies negative logits of seen ids (arXiv 1909.05858)."""
    logits = logits.float().clone()
    for row, (setting, context) in enumerate(zip(settings, contexts, strict=True)):
        if setting.repetition_penalty == 1.0:
            continue
        known = sorted(token for token in set(context) if token < logits.shape[-1])
        seen = to_device(known, logits.device, torch.long)
        values = logits[row, seen]
        penalty = setting.repetition_penalty
        logits[row, seen] = torch.where(values < 0, values * penalty, values / penalty)
    return logits


def _warped(logits: Tensor, settings: Sequence[FoReaLConfig]) -> Tensor:
    """Temperature and truncation, [R, V] float32; dropped ids get -inf."""
    device = logits.device
    temperature = to_device([s.temperature for s in settings], device)[:, None]
    # The largest score is 0 whatever the temperature: a tiny one must not overflow.
    scores = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if all(s.top_k == 0 and s.top_p == 1.0 and s.min_p == 0.0 for s in settings):
        return scores
    vocabulary = scores.shape[-1]
    ordered, order = scores.sort(dim=-1, descending=True)
    rank = torch.arange(vocabulary, device=device)[None, :]
    top_k = [min(s.top_k or vocabulary, vocabulary) for s in settings]
    ordered = ordered.masked_fill(rank >= to_device(top_k, device)[:, None], -torch.inf)
    probabilities = ordered.softmax(dim=-1)
    top_p = to_device([s.top_p for s in settings], device)[:, None]
    # A token stays while the likelier ones before it do not fill the nucleus; 1.0 keeps all,
    # rounding of the cumulative sum included. The likeliest always stays.
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = (before >= top_p) & (top_p < 1.0) & (rank > 0)
    min_p = to_device([s.min_p for s in settings], device)[:, None]
    dropped |= probabilities < min_p * probabilities[:, :1]
    ordered = ordered.masked_fill(dropped, -torch.inf)
    return torch.empty_like(scores).scatter_(1, order, ordered)
