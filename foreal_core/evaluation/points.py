"""The points of a sweep: which settings, with which draft, and what to call them."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError
from foreal_core.policies import PolicySpec, find_policy, policy_specs

# The settings that make a difference under each policy, of those that sweeps are about.
_STEERING = ("lead_count", "lead_probability", "hit_threshold", "hit_window")
SWEPT = (*_STEERING, "draft_length", "speculate")
_LEADING = ("lead_count", "hit_threshold", "hit_window", "draft_length", "speculate")
_MATTERS: dict[str, tuple[str, ...]] = {
    "foreal": SWEPT,
    "even": SWEPT,
    "wait": ("lead_probability",),
    "speculative": ("draft_length",),
    "leader": (),
    "draft": (),
    "review": ("speculate",),
    "entropy": _LEADING,
    "cues": _LEADING,
}
_NAMES: dict[str, str] = {
    "foreal": "FoReaL",
    "even": "even gate",
    "wait": '"Wait," control',
    "speculative": "speculative, {} proposed",
    "leader": "leader alone",
    "draft": "draft alone",
}
_SYMBOLS = {"lead_count": "n", "lead_probability": "p", "hit_threshold": "k"}

PAPER_N = (5, 15, 25)
PAPER_P = (0.2, 0.4, 0.6, 0.8, 1.0)
PAPER_K = (1, 3, 5, 7, 9)


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        draft: which of the sweep's drafts; "" for the leader alone, who has none.
        config: all settings, those at their defaults that make no difference under its policy.
    """

    draft: str
    config: FoReaLConfig

    @classmethod
    def of(cls, draft: str, base: FoReaLConfig, **overrides: Any) -> Point:
        """The point of these settings; equal points write the same texts at the same cost."""
        config = base.with_overrides(**overrides)
        idle = set(SWEPT) - set(_matters(config))
        defaults = FoReaLConfig()
        config = config.with_overrides(**{name: getattr(defaults, name) for name in idle})
        return cls("" if config.policy == "leader" else draft, config)

    def label(self, drafts: Sequence[str], base: FoReaLConfig) -> str:
        """A short name that tells this point from the others of a sweep.

        Args:
            drafts: all of them, the main one first.
            base: what the points vary.
        """
        config, defaults = self.config, FoReaLConfig()
        policy = config.policy_spec.name
        matters = _matters(config)
        name = _NAMES.get(policy, policy).format(config.draft_length or "adaptive")
        for setting, symbol in _SYMBOLS.items():
            usual = setting == "hit_threshold" and config.hit_threshold == defaults.hit_threshold
            if setting in matters and not usual:
                name += f" {symbol}={getattr(config, setting)}"
        name += "".join(f" {option}={value}" for option, value in _told_options(config))
        told = {
            "policy",
            "policy_options",
            *_SYMBOLS,
            *(SWEPT if config.policy == "speculative" else ()),
        }
        for field in fields(config):
            value = getattr(config, field.name)
            usual = getattr(defaults if field.name in SWEPT else base, field.name)
            if field.name not in told and value != usual:
                name += f" {field.name}={value}"
        if len(drafts) > 1 and self.draft and (config.policy == "draft" or self.draft != drafts[0]):
            name += f" ({self.draft})"
        return name


def _matters(config: FoReaLConfig) -> tuple[str, ...]:
    """The settings out of SWEPT that make a difference under a config's policy."""
    name = config.policy_spec.name
    if (
        name == "review"
        and config.policy_spec.checked_options(config.policy_options).lead_probability
    ):
        return _LEADING
    return _MATTERS.get(name, SWEPT)


def _told_options(config: FoReaLConfig) -> list[tuple[str, Any]]:
    """The first option of a config's policy, if it is set, and those not at their defaults."""
    spec = config.policy_spec
    if spec.options is None:
        return []
    given, usual = spec.checked_options(config.policy_options), spec.options()
    first, *others = (field.name for field in fields(spec.options))
    told = [] if getattr(given, first) is None else [first]
    told += [name for name in others if getattr(given, name) != getattr(usual, name)]
    return [(name, getattr(given, name)) for name in told]


def grid(draft: str, base: FoReaLConfig, values: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of the given values.

    Args:
        draft: writes with the leader.
        base: what the points vary.
        values: of settings, and of the policies' own options by their names. What a point's policy
            has as its own option is that, also where a setting has the same name; an option of
            another policy makes no difference to the point.

    Raises:
        ConfigError: a name that is no setting and no option of a policy of this grid.
    """
    specs = [find_policy(policy) for policy in values.get("policy", (base.policy,))]
    settings = {field.name for field in fields(FoReaLConfig)} - {"seed"}
    for name, given in values.items():
        if name not in settings and not any(name in _options_of(spec) for spec in specs):
            raise _unknown(name, given, settings, specs)
    points = []
    for chosen in itertools.product(*values.values()):
        point = dict(zip(values, chosen, strict=True))
        own = _options_of(find_policy(point.get("policy", base.policy)))
        overrides = {name: value for name, value in point.items() if name in settings - own}
        if options := {name: value for name, value in point.items() if name in own}:
            kept = None if "policy" in point else base.policy_options
            overrides["policy_options"] = {**(point.get("policy_options", kept) or {}), **options}
        points.append(Point.of(draft, base, **overrides))
    return points


def _options_of(spec: PolicySpec) -> set[str]:
    return {field.name for field in fields(spec.options)} if spec.options is not None else set()


def _unknown(
    name: str, given: Sequence[Any], settings: Iterable[str], specs: Iterable[PolicySpec]
) -> ConfigError:
    """The error of a grid over what is neither a setting nor an option of its policies."""
    spelled = f"{name}={','.join(map(str, given))}"
    owners = [spec.name for spec in policy_specs() if name in _options_of(spec)]
    if owners:
        return ConfigError(
            f"{spelled} is not allowed: {name} is an option of {', '.join(owners)}, and the policy "
            f"here is {', '.join(spec.name for spec in specs)}: give policy={owners[0]} too."
        )
    options = sorted({one for spec in specs for one in _options_of(spec)})
    own = f", or of its policy's options {', '.join(options)}" if options else ""
    return ConfigError(
        f"{spelled} is not allowed: a grid is over settings, {', '.join(sorted(settings))}{own}."
    )


def comparison(drafts: Sequence[str], base: FoReaLConfig) -> list[Point]:
    """The comparison of the method: leader and drafts alone, the paper's two settings with each
    draft, speculative decoding and the controls."""
    first = drafts[0]
    points = [Point.of(first, base, policy="leader")]
    points += [Point.of(draft, base, policy="draft") for draft in drafts]
    points += grid(first, base, {"lead_count": [15], "lead_probability": [0.6, 1.0]})
    points += grid(first, base, {"policy": ["speculative"], "draft_length": [3, 5]})
    points += [Point.of(first, base, policy=policy) for policy in ("even", "wait")]
    for other in drafts[1:]:
        points += grid(other, base, {"lead_count": [15], "lead_probability": [0.6, 1.0]})
    return points


def paper(drafts: Sequence[str], base: FoReaLConfig) -> list[Point]:
    """The comparison, and for the first draft the experiments of arXiv 2506.06998: the whole grid
    over n and p and the row over k."""
    first = drafts[0]
    return unique(
        [
            *comparison(drafts, base),
            *grid(first, base, {"lead_probability": PAPER_P, "lead_count": PAPER_N}),
            *grid(first, base, {"lead_count": [15], "hit_threshold": PAPER_K}),
        ]
    )


def control(drafts: Sequence[str], base: FoReaLConfig) -> list[Point]:
    """All policies with the first draft, where they can be steered at three levels of cost."""
    first = drafts[0]
    options: dict[str, tuple[str, Sequence[Any]]] = {
        "review": ("tolerance", (0.05, 0.3, 0.7)),
        "entropy": ("share", (0.2, 0.4, 0.6)),
        "cues": ("rule", ("first_words", "speculative_thinking")),
    }
    points = [Point.of(first, base, policy=policy) for policy in ("leader", "draft", "speculative")]
    points += grid(first, base, {"policy": ["foreal", "even"], "lead_probability": [0.4, 0.6, 0.8]})
    for policy, (option, values) in options.items():
        points += [
            Point.of(first, base, policy=policy, policy_options={option: value}) for value in values
        ]
    return points


def short(drafts: Sequence[str], base: FoReaLConfig) -> list[Point]:
    """One or two points of each policy with the first draft, what tells most first: for pairs whose
    answers take minutes."""
    first = drafts[0]
    points = [Point.of(first, base, policy=policy) for policy in ("leader", "draft")]
    points += [
        Point.of(first, base, policy="review", policy_options={"tolerance": tolerance})
        for tolerance in (0.3, 0.6)
    ]
    points += [
        Point.of(first, base, policy="foreal", lead_probability=1.0),
        Point.of(first, base, policy="even", lead_probability=0.6),
        Point.of(first, base, policy="entropy", policy_options={"share": 0.4}),
        Point.of(first, base, policy="foreal", lead_probability=0.6),
        Point.of(first, base, policy="foreal", lead_probability=1.0, lead_count=5),
    ]
    return points


PRESETS: Mapping[str, Callable[[Sequence[str], FoReaLConfig], list[Point]]] = {
    "comparison": comparison,
    "paper": paper,
    "control": control,
    "short": short,
}


def only(points: Mapping[str, Point], patterns: Sequence[str]) -> list[Point]:
    """The points whose labels fit a pattern (* and ? stand for anything), in their own order.

    Raises:
        ConfigError: nothing fits a pattern.
    """
    for pattern in patterns:
        if not fnmatch.filter(points, pattern):
            raise ConfigError(f"no run is called {pattern!r}; there are: {', '.join(points)}.")
    return [
        point
        for label, point in points.items()
        if any(fnmatch.fnmatchcase(label, pattern) for pattern in patterns)
    ]


def unique(points: Iterable[Point]) -> list[Point]:
    """The points without repetitions, in order."""
    return list(dict.fromkeys(points))
