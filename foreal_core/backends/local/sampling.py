"""Logits to token ids, drawn by (request seed, position) so that batches do not change the text.

Sampling is the Gumbel-max trick: token = argmax(log-probability + g), where g is Gumbel noise, a
pure function of (seed, position, token id). The draw is exact for any distribution, needs no
generator state, and is the same alone and in any batch. Leader and draft share the noise at a
position, so a draft that thinks like the leader draws the same token: proposals are accepted iff
they equal the leader's own draw, which leaves the leader's distribution untouched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foreal_core.backends.local.device import to_device
from foreal_core.config import FoReaLConfig
from foreal_core.events import TokenLogprobs
from foreal_core.randomness import splitmix64
from foreal_core.request.draws import Draws as Draws
from foreal_core.request.logit_rules import Adjustment

_MASK32 = 0xFFFFFFFF
# Draws are made in float64; where a device has none the host makes them, of the same noise.
_WITHOUT_FLOAT64 = ("mps",)
# Of what `draw_on_device` gives, whatever is asked for.
_FIXED_ROWS = 6


def draw(
    logits: Tensor,
    settings: Sequence[FoReaLConfig],
    seeds: Sequence[int],
    positions: Sequence[int],
    adjustments: Sequence[Adjustment | None],
) -> Draws:
    """Draws one token per row.

    Args:
        logits: [R, V], any float dtype.
        settings: one per row.
        seeds: the request's seed, one per row.
        positions: index of the token in the completion, one per row.
        adjustments: what the request's rules say of the row, in the ids of the logits; None for
            nothing.

    Rows with temperature 0 take the arg-max. The order is vLLM's: biases and forbidden ids,
    penalties, temperature; then transformers': top-k, top-p, min-p.
    """
    return to_host(draw_on_device(logits, settings, seeds, positions, adjustments))


def to_host(drawn: Tensor) -> Draws:
    """What `draw_on_device` gave, in the one small copy of a step."""
    drawn = drawn.cpu()
    tokens, argmax, finite = drawn[:3].tolist()
    floats = drawn[3:_FIXED_ROWS].view(torch.float64).tolist()
    draws = Draws(tokens, argmax, [bool(flag) for flag in finite], *floats)
    if len(drawn) > _FIXED_ROWS:
        chosen, *likeliest = drawn[_FIXED_ROWS::2].contiguous().view(torch.float64).tolist()
        ids = drawn[_FIXED_ROWS + 1 :: 2].tolist()
        for row, logprob in enumerate(chosen):
            top = ((of[row], value[row]) for of, value in zip(ids, likeliest, strict=True))
            allowed = tuple((token, value) for token, value in top if value > -math.inf)
            draws.logprobs.append(TokenLogprobs(logprob, allowed))
    return draws


def draw_on_device(
    logits: Tensor,
    settings: Sequence[FoReaLConfig],
    seeds: Sequence[int],
    positions: Sequence[int],
    adjustments: Sequence[Adjustment | None],
    proposals: Sequence[int | None] = (),
    *,
    uncertainty: bool = False,
) -> Tensor:
    """As `draw`, but the result stays where the logits are: [6, R] int64, its rows the first of
    `Draws`. Where settings ask for logprobs, [7 + 2K, R]: then follows that of the drawn token, and
    an id and its logprob for each of the K likeliest. Floats are there as the bits of float64.

    Args:
        proposals: the token to be judged in each row, None where there is none.
        uncertainty: whether entropies and gaps are wanted.
    """
    if logits.device.type in _WITHOUT_FLOAT64:
        logits = logits.cpu()
    raw = logits
    floats = torch.full((3, len(settings)), torch.nan, dtype=torch.float64, device=raw.device)
    if uncertainty:
        floats[1], floats[2] = _uncertainty(raw)
    peak, argmax = raw.max(dim=-1)
    tokens = argmax
    if any(adjustments):
        logits = _adjusted(raw, settings, adjustments)
        tokens = logits.argmax(dim=-1)
    judged = [(row, token) for row, token in enumerate(proposals) if token is not None]
    if judged:
        floats[0] = _margins(logits.float(), judged)
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
        noised = scores.double() + noise
        tokens = tokens.index_copy(0, rows, noised.argmax(dim=-1))
        place = {row: index for index, row in enumerate(sampled)}
        if of_sampled := [(place[row], token) for row, token in judged if row in place]:
            temperature = to_device([settings[row].temperature for row in sampled], raw.device)
            floats[0, rows] = _margins(noised, of_sampled) * temperature
    drawn = torch.stack([tokens, argmax, torch.isfinite(peak).long()])
    drawn = torch.cat([drawn, floats.view(torch.int64)])
    if any(s.logprobs for s in settings):
        most = min(max(s.top_logprobs for s in settings), raw.shape[-1])
        drawn = torch.cat([drawn, _logprobs(raw, tokens, most)])
    return drawn


def _margins(scores: Tensor, judged: Sequence[tuple[int, int]]) -> Tensor:
    """[R] float64: by how much the score of the judged (row, token) falls short of the row's best;
    NaN in other rows."""
    rows, tokens = (to_device(list(column), scores.device) for column in zip(*judged, strict=True))
    chosen = scores[rows]
    short = chosen.gather(-1, tokens[:, None])[:, 0] - chosen.amax(dim=-1)
    margins = torch.full((len(scores),), torch.nan, dtype=torch.float64, device=scores.device)
    return margins.index_copy(0, rows, short.double())


def _uncertainty(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy in nats, and the two likeliest tokens' difference in chance, each [R]."""
    chances = logits.float().softmax(dim=-1)
    first, second = chances.topk(2, dim=-1).values.unbind(-1)
    return torch.special.entr(chances).sum(dim=-1), first - second


def _logprobs(raw: Tensor, tokens: Tensor, most: int) -> Tensor:
    """[1 + 2 * most, R] int64; see `draw_on_device`."""
    logprobs = raw.float().log_softmax(dim=-1)
    values, ids = logprobs.topk(most, dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])
    chosen, values = (of.double().view(torch.int64) for of in (chosen, values))
    return torch.cat([chosen.T, torch.stack([ids.T, values.T], dim=1).flatten(0, 1)])


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


def _adjusted(
    logits: Tensor,
    settings: Sequence[FoReaLConfig],
    adjustments: Sequence[Adjustment | None],
) -> Tensor:
    """Biased, then penalised (repetition: arXiv 1909.05858; presence and frequency: OpenAI), in
    float32. A row in which nothing would be left, since all that its grammar allows is forbidden,
    stays as it is."""
    asked = [(row, one) for row, one in enumerate(adjustments) if one is not None]
    logits = logits.float()
    adjusted = logits.clone()
    at, bias = _entries(adjusted, [(row, one.biased, one.bias[None]) for row, one in asked])
    adjusted[at] += bias[0]
    penalties = [(row, one.seen, _penalties(settings[row], one.times)) for row, one in asked]
    at, (repetition, taken_off) = _entries(adjusted, penalties)
    values = adjusted[at]
    adjusted[at] = torch.where(values < 0, values * repetition, values / repetition) - taken_off
    empty = adjusted.amax(dim=-1, keepdim=True) == -torch.inf
    return torch.where(empty, logits, adjusted)


def _penalties(settings: FoReaLConfig, times: np.ndarray) -> np.ndarray:
    """[2, N] float32: what logits of ids are divided by, and what is taken off them then; `times`
    says how often the completion holds each."""
    taken_off = settings.presence_penalty * (times > 0) + settings.frequency_penalty * times
    repetition = np.full(len(times), settings.repetition_penalty)
    return np.stack([repetition, taken_off]).astype(np.float32)


def _entries(
    logits: Tensor, parts: Sequence[tuple[int, np.ndarray, np.ndarray]]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Where (row, ids [N], values [C, N]) lie in the logits, and the values [C, sum of N]; ids
    beyond the model's vocabulary are left out."""
    known = [(row, ids < logits.shape[-1], ids, values) for row, ids, values in parts]
    rows = np.concatenate([np.full(np.count_nonzero(own), row) for row, own, *_ in known])
    ids = np.concatenate([ids[own] for _, own, ids, _ in known])
    values = np.concatenate([values[:, own] for _, own, _, values in known], axis=1)
    device = logits.device
    return (to_device(rows, device), to_device(ids, device)), to_device(values, device)


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
