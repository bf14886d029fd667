"""FoReaLConfig: every setting of one generation, checked on construction. Knows no models."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NoReturn, get_args

from foreal_core.cost import DRAFT, LEADER, Author
from foreal_core.errors import ConfigError, did_you_mean
from foreal_core.numbers import is_integer, is_number
from foreal_core.policies import Budget, PolicyFactory, PolicySpec, find_policy
from foreal_core.settings_file import with_file

HitWindow = Literal["after_lead", "sentence"]
SentenceBoundaryMode = Literal["robust", "paper"]
SamplingSource = Literal["given", "model"]

_MOST_LOGPROBS = 20


@dataclass(frozen=True)
class FoReaLConfig:
    """Settings of one generation; the defaults are the paper's (arXiv 2506.06998).

    Attributes:
        lead_count: n, tokens that the leader writes at least in a led sentence (>= 0).
        lead_probability: p, chance that a sentence is led, in [0, 1].
        hit_threshold: k, consecutive aligned positions before the hand-off (>= 0); 0 hands over
            right after token n.
        hit_window: "after_lead" counts the run from token n on, "sentence" from the sentence's
            start.
        sentence_boundary: "robust" knows decimals, abbreviations, code and maths; "paper" takes
            every mark and newline for an end.
        max_new_tokens: tokens written at most (>= 1); the context may end the text earlier.
        sampling: "given" draws by the values below; "model" by those that the leader's files
            recommend (generation_config.json, or a GGUF file itself), where a value below is left
            at its default. A call that overrides the temperature draws by what is given again.
        temperature: 0 is greedy; above 0 each token is drawn from its author's own distribution.
        top_p: nucleus, in (0, 1]; 1 keeps everything.
        top_k: most likely tokens kept (>= 0); 0 keeps everything.
        min_p: tokens below min_p times the likeliest are dropped, in [0, 1].
        repetition_penalty: above 0; 1 changes nothing (Keskar et al., arXiv 1909.05858).
        presence_penalty: taken off the logit of every id that the completion holds, in [-2, 2] (as
            OpenAI defines it).
        frequency_penalty: taken off a logit once for every time that the completion holds its id,
            in [-2, 2] (as OpenAI defines it).
        logit_bias: added to logits, in [-100, 100]: a mapping, or its JSON text, from ids or texts;
            a text stands for each of its tokens, digits alone for an id.
        bad_words: what is never written: ids, sequences of ids, or texts as they are spelled with
            and without a blank before them. Void where a grammar allows nothing else.
        min_tokens: before so many tokens no end of text is drawn and no stop string counts (>= 0,
            at most max_new_tokens).
        stop: strings that end the text and never show in it; a str is one of them.
        stop_token_ids: ids that end the text as an end of sequence does.
        stop_in_thinking: stop strings also count inside the thinking before an answer.
        logprobs: report of each token which log-probability its author gave to it: of the raw
            distribution, temperature, penalties and biases left out (a grammar's masks are in it).
        top_logprobs: the same of so many likeliest tokens, in [0, 20]; needs logprobs.
        seed: in [0, 2**63); None draws a fresh one, which the cost record names.
        speculate: let the draft propose what the leader writes, and read guesses out of the text
            where that takes no time; in float32 the text stays the same.
        policy: who writes: the name of a registered policy ("foreal" is the paper's, "even" the
            same with its led sentences spread evenly; "review", "entropy" and "cues" decide while
            they write; "leader", "draft", "speculative" and "wait" are what to compare with; see
            `register_policy`), or a factory of one.
        policy_options: the policy's own options: a mapping, its JSON text, or an instance of the
            policy's dataclass.
        budget: what the text may cost at most: a `Budget`, a mapping of its fields ("flops",
            "written_flops", "weight_bytes", "tokens", "expected_tokens"), or its JSON text. Up to 1
            a number is a share of the leader alone, above it an amount. Then it decides how many
            sentences are led, instead of lead_probability; a lead beyond it is the draft's.
        lead_first: sentences that the leader writes whole before the policy is asked (>= 0).
        answer_by: "leader" or "draft" writes what follows the thinking, from the first sentence
            after its end mark on; None leaves it to the policy.
        thinking_budget: tokens of thinking after which it is closed for the model (>= 1, below
            max_new_tokens): a sentence that says so and the end mark are given to it, and it
            answers. None for no bound.
        thinking_repeats: the same where the thinking ends in the same words so often in a row
            (>= 2; the loop spans at least 32 tokens, its words at most 64).
        thinking_answers: the same at the end of the sentence in which so many answers in a row,
            stated as "the answer is ..." or in \\boxed{}, agree (>= 1; arXiv 2510.08308).
        draft_length: tokens that the draft proposes per pass of the leader (>= 1); None
            proposes as many as are likely to pay, by how many the leader accepts.
        json_schema: the answer is JSON of this schema (a mapping or JSON text; kept as text),
            whoever writes it; thinking before the answer stays free. An answer or a thinking
            that would exceed max_new_tokens is closed in time, if it can be (finish reason
            "length"). Numbers to which the schema sets no bounds stay
            within those that every reader holds exactly (2**53). Alignment then compares what
            each model would write under the schema. Needs the extra "json".
        call_schema: the same for an answer that calls a tool, as the chat template writes calls;
            "<tool_call>\\n{...}\\n</tool_call>" (Hermes, Qwen) where it shows none. The schema is
            the call's, an object of "name" and "arguments"; one of an array of calls allows
            several, if the template does. With json_schema as well the answer is one or the other.
        call_required: False leaves the answer free, text with calls in it or without; what begins
            as a call is then held to the call_schema. With json_schema it says nothing.

    Raises:
        ConfigError: a value has the wrong type or range; it names field, value and range.
    """

    lead_count: int = 15
    lead_probability: float = 0.6
    hit_threshold: int = 5
    hit_window: HitWindow = "after_lead"
    sentence_boundary: SentenceBoundaryMode = "robust"
    max_new_tokens: int = 2048
    sampling: SamplingSource = "given"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int | str, float] | str | None = None
    bad_words: Sequence[str | int | Sequence[int]] | str = ()
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    stop_in_thinking: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    seed: int | None = None
    speculate: bool = True
    policy: str | PolicyFactory = "foreal"
    policy_options: Mapping[str, Any] | str | None = None
    budget: Budget | Mapping[str, float] | str | None = None
    lead_first: int = 0
    answer_by: Author | None = None
    thinking_budget: int | None = None
    thinking_repeats: int | None = None
    thinking_answers: int | None = None
    draft_length: int | None = None
    json_schema: Mapping[str, Any] | str | None = None
    call_schema: Mapping[str, Any] | str | None = None
    call_required: bool = True

    def __new__(cls, *values: Any, **named: Any) -> FoReaLConfig:
        cls._refuse_unknown(named)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("lead_count", "hit_threshold", "top_k", "lead_first", "min_tokens"):
            self._check_int(name, 0)
        self._check_int("max_new_tokens", 1)
        if self.thinking_budget is not None:
            self._check_int("thinking_budget", 1, self.max_new_tokens - 1)
        for name, low in (("thinking_repeats", 2), ("thinking_answers", 1), ("draft_length", 1)):
            if getattr(self, name) is not None:
                self._check_int(name, low)
        if self.answer_by is not None:
            self._check_choice("answer_by", (LEADER, DRAFT))
        if self.budget is not None:
            object.__setattr__(self, "budget", Budget.of(self.budget))
        for name in ("lead_probability", "min_p"):
            self._check_float(name, 0.0, 1.0, "in [0, 1]")
        self._check_float("temperature", 0.0, math.inf, "a finite number >= 0")
        self._check_float("top_p", 0.0, 1.0, "in (0, 1]", open_low=True)
        self._check_float("repetition_penalty", 0.0, math.inf, "a finite number > 0", open_low=True)
        for name in ("presence_penalty", "frequency_penalty"):
            self._check_float(name, -2.0, 2.0, "in [-2, 2]")
        if self.min_tokens > self.max_new_tokens:
            self._refuse("min_tokens", f"at most max_new_tokens={self.max_new_tokens}")
        self._check_int("top_logprobs", 0, _MOST_LOGPROBS)
        self._check_choice("hit_window", get_args(HitWindow))
        self._check_choice("sentence_boundary", get_args(SentenceBoundaryMode))
        self._check_choice("sampling", get_args(SamplingSource))
        self._check_policy()
        for name in ("speculate", "stop_in_thinking", "logprobs", "call_required"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        if self.top_logprobs and not self.logprobs:
            self._refuse("top_logprobs", "0 without logprobs=True")
        if self.seed is not None:
            self._check_int("seed", 0, 2**63 - 1)
        object.__setattr__(self, "stop", self._checked_stop())
        object.__setattr__(self, "stop_token_ids", self._checked_stop_ids())
        object.__setattr__(self, "logit_bias", self._checked_bias())
        object.__setattr__(self, "bad_words", self._checked_bad_words())
        for name in ("json_schema", "call_schema"):
            object.__setattr__(self, name, self._checked_schema(name))
        if self.constrained and self.budget and Budget.of(self.budget).expected_tokens:
            raise ConfigError(
                "a budget's expected_tokens is not allowed with a schema: what it cuts is no JSON."
            )
        if self.policy == "wait" and self.constrained:
            raise ConfigError(
                "policy='wait' is not allowed with a json_schema or call_schema: its fixed text is "
                "no JSON. Use another policy."
            )

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True, default=str))

    @property
    def constrained(self) -> bool:
        """Whether a grammar says what the answer may be."""
        return self.json_schema is not None or self.call_schema is not None

    @property
    def policy_spec(self) -> PolicySpec:
        """The policy that writes."""
        return find_policy(self.policy)

    def with_overrides(self, **overrides: Any) -> FoReaLConfig:
        """A copy with some settings replaced; an unknown name is refused, never ignored. `settings`
        names a file of them, such as `foreal tune` writes; those that are given as well win."""
        overrides = with_file(overrides)
        self._refuse_unknown(overrides)
        if "policy" in overrides:
            overrides.setdefault("policy_options", None)  # those of another policy mean nothing
        if "temperature" in overrides:
            overrides.setdefault("sampling", "given")
        return replace(self, **overrides) if overrides else self

    def as_recommended(self, values: Mapping[str, float]) -> FoReaLConfig:
        """The settings with what a model recommends (see `sampling`), if they ask for it.

        Args:
            values: sampling settings by name.
        """
        if self.sampling == "given":
            return self
        usual = {field.name: field.default for field in fields(self)}
        recommended: dict[str, Any] = {
            k: v for k, v in values.items() if getattr(self, k) == usual[k]
        }
        return replace(self, **recommended)

    @classmethod
    def _refuse_unknown(cls, given: Iterable[str]) -> None:
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"unknown setting {name!r}.{did_you_mean(name, known)} Known settings: "
                    f"{', '.join(sorted(known))}."
                )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-safe values."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **plain,
            "stop": list(self.stop),
            "stop_token_ids": list(self.stop_token_ids),
            "bad_words": [list(w) if isinstance(w, tuple) else w for w in self.bad_words],
            "policy": self.policy_spec.name,
            "budget": None if self.budget is None else Budget.of(self.budget).to_dict(),
        }

    def _check_policy(self) -> None:
        spec = self.policy_spec
        if isinstance(self.policy, str):
            object.__setattr__(self, "policy", spec.name)  # an alias becomes the name
        if isinstance(self.policy_options, str):
            try:
                object.__setattr__(self, "policy_options", json.loads(self.policy_options))
            except ValueError:
                self._refuse("policy_options", "a mapping or its JSON text")
        options = spec.checked_options(self.policy_options)
        if options is not None and self.policy_options is not None:
            object.__setattr__(self, "policy_options", asdict(options))

    def recorded(self) -> dict[str, Any]:
        """`to_dict` for the record of every call, with the name and the digest of a schema in its
        place: schemas are long and the same for many calls."""
        schemas = {"json_schema": self.json_schema, "call_schema": self.call_schema}
        short = {name: _named(str(text)) for name, text in schemas.items() if text is not None}
        return {**self.to_dict(), **short}

    def _checked_stop(self) -> tuple[str, ...]:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
            self._refuse("stop", "a non-empty string or a sequence of them")
        return tuple(stop)

    def _checked_stop_ids(self) -> tuple[int, ...]:
        ids = self.stop_token_ids
        if not _is_list(ids) or not all(map(_is_id, ids)):
            self._refuse("stop_token_ids", "a sequence of token ids")
        return tuple(map(int, ids))

    def _checked_bias(self) -> dict[int | str, float] | None:
        given: Any = self.logit_bias
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                given = ()  # no mapping
        if given is None:
            return None
        allowed = "a mapping of token ids or texts to numbers in [-100, 100], or its JSON text"
        if not isinstance(given, Mapping):
            self._refuse("logit_bias", allowed)
        bias: dict[int | str, float] = {}
        for token, value in given.items():
            known = _is_id(token) or (isinstance(token, str) and token)
            if not known or not is_number(value) or not -100 <= value <= 100:
                self._refuse("logit_bias", allowed)
            # JSON has no other keys than strings.
            as_id = not isinstance(token, str) or (token.isascii() and token.isdigit())
            bias[int(token) if as_id else token] = float(value)
        return bias

    def _checked_bad_words(self) -> tuple[str | int | tuple[int, ...], ...]:
        words: Any = (self.bad_words,) if isinstance(self.bad_words, str) else self.bad_words
        if not _is_list(words):
            words = [None]  # no word
        checked: list[str | int | tuple[int, ...]] = []
        for word in words:
            if isinstance(word, str) and word.strip():
                checked.append(word)
            elif _is_id(word):
                checked.append(int(word))
            elif _is_list(word) and word and all(map(_is_id, word)):
                checked.append(tuple(map(int, word)))
            else:
                self._refuse("bad_words", "texts, token ids, or non-empty sequences of token ids")
        return tuple(checked)

    def _checked_schema(self, name: str) -> str | None:
        schema = getattr(self, name)
        if schema is None:
            return None
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(parsed)
        except (TypeError, ValueError):
            self._refuse(name, "a JSON schema: a mapping of JSON values, or its text")
        if not isinstance(parsed, Mapping):
            self._refuse(name, "a JSON object")
        return text

    def _check_int(self, name: str, low: int, high: int | None = None) -> None:
        value = getattr(self, name)
        allowed = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
        if not is_integer(value):
            self._refuse(name, allowed)
        if value < low or (high is not None and value > high):
            self._refuse(name, allowed)
        object.__setattr__(self, name, int(value))

    def _check_float(
        self, name: str, low: float, high: float, allowed: str, *, open_low: bool = False
    ) -> None:
        value = getattr(self, name)
        if not is_number(value):
            self._refuse(name, allowed)
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
            self._refuse(name, allowed)
        object.__setattr__(self, name, value)

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            self._refuse(name, "one of " + ", ".join(repr(choice) for choice in choices))

    def _refuse(self, name: str, allowed: str) -> NoReturn:
        raise ConfigError(f"{name}={getattr(self, name)!r} is not allowed: it must be {allowed}.")


def _is_id(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _named(schema: str) -> str:
    """What a schema describes, its title or the tools that it calls, and a digest of its text."""
    parsed = json.loads(schema)
    branches = parsed.get("anyOf")
    parts = branches if isinstance(branches, list) else [parsed]
    tools = [_within(part, "properties", "name", "const") for part in parts]
    name = parsed.get("title") or ", ".join(str(tool) for tool in tools if tool) or "schema"
    return f"{name} (sha256 {hashlib.sha256(schema.encode()).hexdigest()[:16]})"


def _within(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
