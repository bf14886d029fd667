"""A budget: what a text may cost, and the controller that keeps any policy within it.

The controller is asked wherever a sentence begins. It knows what was spent, what the budget allows
by now, and what led and other sentences have cost in this text, so it can say which share of the
sentences to come may be led; and it turns down a lead that the budget could not pay in full.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

from foreal_core.cost import DRAFT, LEADER, Author, Cost
from foreal_core.errors import ConfigError, did_you_mean
from foreal_core.policies.gate import Gate
from foreal_core.policies.options import refuse_unless_amount, refuse_unless_count
from foreal_core.policies.spans import Outcome, Policy, Review, SpanReport, Write

COUNTS = ("flops", "written_flops", "weight_bytes", "tokens")

# Sentences over which what is left is to be spent, where no length is expected.
_HORIZON = 8
# Tokens of a sentence before any has been seen.
_USUAL_SENTENCE = 32


@dataclass(frozen=True)
class Budget:
    """What one text may cost at most, by the counts of its bill.

    A number above 1 is an amount, a number up to 1 a share of what the leader alone would spend.

    Without `expected_tokens` a share is one of the leader alone on the same text, wherever it may
    end: what its first part spared its next may spend, never the other way round. An amount keeps
    back what the draft needs to write on to `max_new_tokens`. So no text is cut off.

    With `expected_tokens` a share is an amount as well: of the leader alone on a text of that
    length. It is spread over that length, and what the draft needs to its end is kept back. A
    longer text is cut off where the amount is spent (end reason "budget").

    Attributes:
        flops: everything that the models compute, the prompt too. A share needs `expected_tokens`:
            the leader reads what the draft writes, so that the same text never costs less. The
            draft proposes nothing: proposals cost FLOPs and spare bytes.
        written_flops: each written token by its author.
        weight_bytes: weights read, a pass at a time, as if the request ran alone.
        tokens: those that the leader writes.
        expected_tokens: how long the text is expected to be (>= 1).

    Raises:
        ConfigError: a number is out of range, or none is given.
    """

    flops: float | None = None
    written_flops: float | None = None
    weight_bytes: float | None = None
    tokens: float | None = None
    expected_tokens: int | None = None

    def __post_init__(self) -> None:
        limits = self.limits
        for name, value in limits.items():
            refuse_unless_amount(f"budget {name}", value)
        if self.expected_tokens is not None:
            refuse_unless_count("budget expected_tokens", self.expected_tokens, 1)
        elif self.flops is not None and self.flops <= 1:
            raise ConfigError(
                f"budget flops={self.flops!r} needs expected_tokens: as a share it is one of the "
                "leader alone on a text of that length."
            )
        if not limits:
            raise ConfigError(f"the budget is empty: give at least one of {', '.join(COUNTS)}.")

    def __str__(self) -> str:
        return ",".join(f"{name}:{value:g}" for name, value in self.to_dict().items())

    @property
    def limits(self) -> dict[str, float]:
        """The counts that are limited."""
        return {name: value for name, value in self.to_dict().items() if name in COUNTS}

    def to_dict(self) -> dict[str, float]:
        """The numbers that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, given: Any) -> Budget:
        """A budget from one, a mapping, or its JSON text.

        Raises:
            ConfigError: it is none of them, or names what no budget has.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                given = None  # no mapping
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"budget={given!r} is not allowed: a Budget, a mapping of {', '.join(known)} to "
                "numbers, or its JSON text."
            )
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"a budget has no {name!r}.{did_you_mean(str(name), known)} It may have "
                    f"{', '.join(known)}."
                )
        return cls(**given)


class Ledger(Protocol):
    """What a text costs, as its policy may ask.

    Attributes:
        written: tokens of the text so far.
        limit: tokens that it can have.
    """

    @property
    def written(self) -> int: ...
    @property
    def limit(self) -> int: ...

    def spent(self) -> Cost:
        """So far."""
        ...

    def leader_alone(self, tokens: int) -> Cost:
        """Of the leader alone, for a text of so many tokens."""
        ...

    def quote(self, author: Author, tokens: int, after: int = 0) -> Cost:
        """Of the next `tokens` tokens by one author, a pass each, what it has not read included;
        or of those behind the next `after` tokens."""
        ...


class _Limit:
    """One of a budget's numbers: its balance over a text, and what sentences do to it."""

    def __init__(self, name: str, value: float, ledger: Ledger, expected: int | None) -> None:
        self._name = name
        self._value = value
        self._ledger = ledger
        self._amount = value if value > 1 else None
        if self._amount is None and expected is not None:
            self._amount = value * self._of(ledger.leader_alone(expected))
        # Tokens up to which the draft can write whatever the leader does.
        self._kept = ledger.limit if expected is None else min(expected, ledger.limit)
        self._refuse_the_impossible()
        self._start = self.balance()  # of the present sentence
        # By whether they were led: what sentences took from the balance, and how many they were.
        self._taken = {True: 0.0, False: 0.0}
        self._count = {True: 0, False: 0}

    def balance(self, lead: int = 0, *, read_by_draft: bool = True) -> float:
        """What is left beyond what the draft needs, or would be once the leader has written `lead`
        tokens more, which the draft reads one by one."""
        ledger = self._ledger
        end = ledger.written + lead
        if self._amount is None:
            allowed, rest = self._value * self._of(ledger.leader_alone(end)), 0
        else:
            allowed, rest = self._amount, max(self._kept - end, 0)
        if lead and read_by_draft and self._name in ("flops", "weight_bytes"):
            drafted = ledger.quote(DRAFT, lead + rest)
        else:
            drafted = ledger.quote(DRAFT, rest, after=lead)
        led = self._of(ledger.quote(LEADER, lead))
        return allowed - self._of(ledger.spent()) - led - self._of(drafted)

    def at_once(self, stretch: int) -> int:
        """Tokens to pay for before the leader decides upon `stretch`: only what is computed counts
        those that it does not let stand."""
        return stretch if self._name == "flops" else 1

    def end_sentence(self, led: bool) -> None:
        """A sentence has ended."""
        balance = self.balance()
        self._taken[led] += self._start - balance
        self._count[led] += 1
        self._start = balance

    def share(self, usual: int, sentences: float) -> float:
        """The share of led ones that spends what is left over so many sentences.

        Args:
            usual: tokens of a sentence, for what has not been seen yet.
        """
        left = self.balance()
        led = self._mean(True) if self._count[True] else left - self.balance(usual)
        other = self._mean(False) if self._count[False] else 0.0
        if led <= other:
            return 1.0
        return min(max((left / sentences - other) / (led - other), 0.0), 1.0)

    def room(self) -> int:
        """Tokens that the draft can still write."""
        ledger = self._ledger
        room = ledger.limit - ledger.written
        if self._amount is None:
            return room
        left = self._amount - self._of(ledger.spent())
        return bisect_right(
            range(1, room + 1), left, key=lambda tokens: self._of(ledger.quote(DRAFT, tokens))
        )

    def _refuse_the_impossible(self) -> None:
        """Raises ConfigError where the draft alone would exceed it."""
        given = f"budget {self._name}={self._value:g} cannot be kept: the draft alone"
        tokens = (self._kept,) if self._amount is not None else (1, self._kept)
        for count in tokens:
            cheapest = self._of(self._ledger.quote(DRAFT, count))
            whole = self._of(self._ledger.leader_alone(count))
            if self._amount is None and cheapest > self._value * whole:
                raise ConfigError(
                    f"{given} costs {cheapest / whole:.3g} of the leader alone. Give more, or take "
                    "a smaller draft."
                )
            if self._amount is not None and cheapest > self._amount:
                raise ConfigError(
                    f"{given} costs {cheapest:.3g} for {count} tokens, and the budget is "
                    f"{self._amount:.3g}. Give more, or lower max_new_tokens or expected_tokens."
                )

    def _mean(self, led: bool) -> float:
        return self._taken[led] / self._count[led]

    def _of(self, cost: Cost) -> float:
        value: float = getattr(cost, self._name)
        return value


class BudgetControl:
    """Keeps one text within a budget.

    Args:
        budget: of the text.
        ledger: what it costs.

    Raises:
        ConfigError: not even the draft alone could keep it.
    """

    def __init__(self, budget: Budget, ledger: Ledger) -> None:
        expected = budget.expected_tokens
        self._ledger = ledger
        self._expected = expected
        self._limits = [
            _Limit(name, value, ledger, expected) for name, value in budget.limits.items()
        ]
        self._may_propose = budget.flops is None
        self._longest = 0  # tokens of a sentence so far
        self._sentences = 0
        self._sentence_start = 0
        self._led = False  # the present sentence
        self._stopped = False  # its leader
        self._stretch = 1  # tokens that the leader decides upon at once

    def lead_share(self) -> float:
        """The share of led sentences that the budget pays for from here on; 0 where it cannot pay
        a whole sentence of the leader."""
        if not self._pays():
            return 0.0
        coming: float = _HORIZON
        if self._expected is not None:
            mean = self._sentence_start / self._sentences if self._sentences else _USUAL_SENTENCE
            coming = max((self._expected - self._ledger.written) / mean, 1.0)
        return min(limit.share(self._sentence, coming) for limit in self._limits)

    def room(self) -> int | None:
        """Tokens after which the text is cut off if the draft writes them; None where none is."""
        if self._expected is None:
            return None
        return min(limit.room() for limit in self._limits)

    def gate(self, gate: Gate) -> Gate:
        """A gate that leads as often as the budget allows; a chance of 0 stays 0."""
        return lambda p: gate(self.lead_share() if p > 0 else 0.0)

    def keep(self, policy: Policy) -> Policy:
        """The policy with the draft in the place of a leader who would be too dear."""
        report: SpanReport | None = None
        while True:
            span = next(policy) if report is None else policy.send(report)
            self._stretch = 1
            if span.review is not None:
                # What passes spare must not hang on the clock: the budget decides with it.
                self._stretch = span.review.longest
                span = replace(span, review=Review(span.review.tolerance, self._stretch))
            if isinstance(span, Write) and span.decided_by == LEADER:
                alone = span.author == LEADER and span.handoff is None
                if not self._pays(read_by_draft=not alone or self._proposed(span) != 0):
                    span = Write(DRAFT)
                elif span.author == LEADER:
                    span = replace(span, propose=self._proposed(span))
            report = yield span
            self._note(report)
            if self._stopped:
                self._stopped = False
                report = yield Write(DRAFT)
                self._note(report)
            report = replace(report, lead_share=self.lead_share())

    def stops_leader(self) -> bool:
        """Whether the leader's present span ends here, for the budget pays for no more of it."""
        self._stopped = any(
            limit.balance(limit.at_once(self._stretch)) < 0 for limit in self._limits
        )
        return self._stopped

    @property
    def _sentence(self) -> int:
        return self._longest or _USUAL_SENTENCE

    def _proposed(self, span: Write) -> int | None:
        return span.propose if self._may_propose else 0

    def _pays(self, *, read_by_draft: bool = True) -> bool:
        """Whether all limits hold if the leader writes the next sentence alone."""
        room = self._ledger.limit - self._ledger.written
        return all(
            one.balance(
                min(max(self._sentence, one.at_once(self._stretch)), room),
                read_by_draft=read_by_draft,
            )
            >= 0
            for one in self._limits
        )

    def _note(self, report: SpanReport) -> None:
        self._led |= report.author == LEADER or report.replaced > 0
        if report.outcome is not Outcome.SENTENCE_END:
            return
        for limit in self._limits:
            limit.end_sentence(self._led)
        written = self._ledger.written
        self._longest = max(self._longest, written - self._sentence_start)
        self._sentence_start, self._led = written, False
        self._sentences += 1
