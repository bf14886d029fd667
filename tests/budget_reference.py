"""The naive decoder under a budget, and random budgets to ask it for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import Any

from reference import Reference
from toy import Family, pair

from foreal_core import FoReaLConfig
from foreal_core.cost import ModelProfile
from foreal_core.policies import Budget


class BudgetReference(Reference):
    """The naive decoder under a budget in what is written: everything is summed up anew, token by
    token, wherever a sentence begins.

    The balance is what is allowed, less what was spent, less what the draft must write yet: under a
    share without an expected length what is allowed is that share of the leader alone so far, and
    the draft must write nothing; else it is the amount, and the draft must write to the expected
    length (the limit, if none is expected). With an expected length the text ends where the amount
    is spent.

    A sentence may be led only if the balance stays >= 0 should the leader write as many tokens as
    the longest sentence had (32 at first). Of those some share is led: the balance that each of the
    next sentences may take (8, or as many as are expected), less what those that were not led took
    on average, over what led ones took more. Until one was led, such a whole sentence stands in.
    In a sentence the leader stops where one more token would make the balance negative.
    """

    def __init__(self, family: Family, profiles: dict[Any, ModelProfile]) -> None:
        super().__init__(pair(family))
        self._profiles = profiles

    def under(self, prompt: Sequence[int], settings: FoReaLConfig) -> Any:
        self._starts: list[int] = []
        self._led: list[bool] = []
        self._prompt = len(prompt)
        self._budget = Budget.of(settings.budget)
        return self.generate(prompt, settings)

    def _is_led(self, settings: Any, sentences: Any, prompt: Any, token_ids: Any) -> bool:
        self._starts.append(len(token_ids))
        self._stopped = False
        self._most = settings.max_new_tokens
        led = super()._is_led(settings, sentences, prompt, token_ids)
        led = led and self._pays()
        self._led.append(led)
        return led

    def _is_spent(self) -> bool:
        here = len(self._authors)
        return any(self._balance(name, here, 1) < 0 for name in self._budget.limits)

    def _chance(self, usual: float) -> float:
        if not self._pays() or usual == 0:
            return 0.0
        shares = []
        lengths = [end - start for start, end in zip(self._starts, self._starts[1:], strict=False)]
        for name in self._budget.limits:
            balances = [self._balance(name, start) for start in self._starts]
            taken = [before - after for before, after in itertools.pairwise(balances)]
            led = [one for one, was in zip(taken, self._led, strict=True) if was]
            others = [one for one, was in zip(taken, self._led, strict=True) if not was]
            here, longest = self._starts[-1], max(lengths, default=0) or 32
            whole = balances[-1] - self._balance(name, here, longest)
            per_led = sum(led) / len(led) if led else whole
            per_other = sum(others) / len(others) if others else 0.0
            coming = 8.0
            if self._budget.expected_tokens is not None:
                mean = sum(lengths) / len(lengths) if lengths else 32
                coming = max((self._budget.expected_tokens - here) / mean, 1.0)
            share = 1.0
            if per_led > per_other:
                share = (balances[-1] / coming - per_other) / (per_led - per_other)
            shares.append(min(max(share, 0.0), 1.0))
        return min(shares)

    def _pays(self) -> bool:
        lengths = [end - start for start, end in zip(self._starts, self._starts[1:], strict=False)]
        here = self._starts[-1]
        lead = min(max(lengths, default=0) or 32, self._limit - here)
        return all(self._balance(name, here, lead) >= 0 for name in self._budget.limits)

    def _price(self, name: str, author: str, position: int) -> int:
        if name == "tokens":
            return int(author == "leader")
        return self._profiles[author].flops(1, self._prompt + position, 1)

    def _amount(self, name: str) -> float | None:
        value = self._budget.limits[name]
        if value <= 1 and self._budget.expected_tokens is not None:
            whole = range(self._budget.expected_tokens)
            return value * sum(self._price(name, "leader", position) for position in whole)
        return value if value > 1 else None

    def _spent(self, name: str, end: int) -> int:
        return sum(self._price(name, a, i) for i, a in enumerate(self._authors[:end]))

    def _balance(self, name: str, start: int, lead: int = 0) -> float:
        end = start + lead
        spent = self._spent(name, start)
        spent += sum(self._price(name, "leader", position) for position in range(start, end))
        amount = self._amount(name)
        if amount is None:
            alone = sum(self._price(name, "leader", position) for position in range(end))
            return self._budget.limits[name] * alone - spent
        kept = min(self._budget.expected_tokens or self._most, self._most)
        rest = sum(self._price(name, "draft", position) for position in range(end, kept))
        return amount - spent - rest

    def _limit_of_draft(self) -> int:
        """With an expected length the text ends where the draft has spent the rest."""
        if self._budget.expected_tokens is None:
            return self._limit
        ends = [self._limit]
        for name in self._budget.limits:
            end = len(self._authors)
            left = (self._amount(name) or 0) - self._spent(name, end)
            while end < self._limit and self._price(name, "draft", end) <= left:
                left -= self._price(name, "draft", end)
                end += 1
            ends.append(max(end, len(self._authors) + 1))
        return min(ends)


def random_budget(rng: Random, names: Sequence[str], draft_share: float) -> dict[str, Any]:
    """One that the draft alone can keep."""
    budget: dict[str, Any] = {}
    if rng.random() < 0.5:
        budget["expected_tokens"] = rng.choice((10, 30, 60))
    for name in rng.sample(list(names), rng.choice((1, 1, 2))):
        low = 0.0 if name == "tokens" else draft_share
        budget[name] = low + rng.choice((0.1, 0.3, 0.6)) * (1 - low)
        if name == "flops":
            budget.setdefault("expected_tokens", 40)
    if "tokens" in budget and rng.random() < 0.5:
        budget["tokens"] = rng.choice((5, 12, 30))
    return budget
