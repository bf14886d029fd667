"""FoReaL-Decoding as plainly as it can be written: the judge of the engine's tokens.

One request, no cache, one full forward pass per token and model, nothing batched, nothing proposed.
Written from the description of the method alone, and slow on purpose. Where that description is
silent, the readings are:

- A sentence is led iff `gate_draw(seed, sentence number from 0) < p`; under "even" iff the share
  of led sentences would stay below p without it.
- Under "wait" a led sentence opens with "Wait," (a blank before it unless the text so far ends in
  one) and all else is the draft's, to whom the cue counts.
- A pending end: the writing goes on as if the sentence did. When a later text settles the mark as
  an end, the tokens after the mark belong to the new sentence. If another model than their author
  opens that sentence they are taken back, else they stay and are its first tokens.
- A token's text is what it completes: a UTF-8 character that is still open belongs to the token
  that brings its last byte.
- An end-of-sequence token ends the response at once and belongs to it; after a pending mark it is
  a later text that settles the mark, so who opens the next sentence says whether it stays.
- The text is cut before the earliest stop string; the token that completes it is the last one.
- Under "review" a led sentence's lead is as ever; else each token is the draft's draw if the leader
  would have drawn it itself, had it weighed it 1 / tolerance times as much, and its own draw if
  not. Weights are probabilities, when sampling times exp(temperature x noise) of those tokens that
  the leader's truncation keeps.
- Under "entropy" a sentence is led iff the entropy (or 1 minus the gap of the two likeliest) of
  the draft's raw distribution for its first token is above the threshold, or iff fewer than
  share x i of the first i are larger. Under "cues" iff the draft alone would begin it with a cue.
- A budget, asked where a sentence begins: see `budget_reference.BudgetReference`.
- With n = 0 and k = 0 a led sentence is handed over before the leader writes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from toy import Family, Pair, readable

from foreal_core.backends.local.sampling import _warped, draw, gumbel_noise
from foreal_core.config import FoReaLConfig
from foreal_core.policies import gate_draw
from foreal_core.text.sentences import Boundary, SentenceBoundaryDetector

KNOWN_POLICIES = ("foreal", "even", "wait", "review", "entropy", "cues")


@dataclass(frozen=True)
class Answer:
    """What the method writes: `sentences` are (start, end, led).

    `hit_runs` holds the run of aligned positions for each token of the leader where it counts.
    `margin` is the smallest gap between the best and the second-best logit of all decisions: a
    difference that is no larger than rounding would excuse another token. `taken_back` counts
    tokens that were written after a pending mark and then withdrawn.
    """

    token_ids: tuple[int, ...]
    authors: tuple[str, ...]
    sentences: tuple[tuple[int, int, bool], ...]
    text: str
    finish_reason: str
    hit_runs: tuple[int | None, ...]
    margin: float
    taken_back: int


class Reference:
    """The naive decoder of one pair.

    Next-token logits are remembered by the exact ids they follow: a pure function, called often.
    """

    def __init__(self, pair: Pair, *, max_context: int | None = None) -> None:
        self._pair = pair
        self._max_context = max_context or 10**9
        self._known: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def generate(self, prompt: Sequence[int], settings: FoReaLConfig) -> Answer:
        if settings.policy not in KNOWN_POLICIES or settings.seed is None:
            raise ValueError("the reference does not know the policy, or has no seed")
        self._unsure: list[float] = []
        self._limit = settings.max_new_tokens
        self._due, self._evenly_led = Fraction(0), 0
        self._stopped = False
        detector = _Detector(settings)
        token_ids: list[int] = []
        self._authors = authors = []
        sentences: list[tuple[int, int, bool]] = []
        margin, taken_back = float("inf"), 0

        start = 0  # where the current sentence starts
        begun = False  # it holds more than white space and closing delimiters
        led = self._is_led(settings, sentences, prompt, token_ids)
        given = self._cue(settings, led, prompt)  # tokens that nobody chooses
        pending: int | None = None  # where the next sentence starts, should the mark be an end
        # Per token that the leader wrote in this sentence: do both models agree on it?
        aligned: list[bool] = []
        hit_runs: list[int | None] = []

        while True:
            leads = _leads(led, aligned, settings, begun=begun) and not self._stopped
            author = "leader" if leads else "draft"
            if not leads and pending is None:
                self._limit = self._limit_of_draft()
            context = [*prompt, *token_ids]
            if given:
                token_ids.append(given.pop(0))
            else:
                logits = self._next_logits(author, context)
                ruled = self._ruled(logits, settings, prompt, token_ids)
                drawn = draw(ruled[None], [settings], [settings.seed], [len(token_ids)], [None])
                margin = min(margin, _gap(logits))
                token = drawn.tokens[0]
                if author == "draft" and settings.policy == "review":
                    token, author, gap = self._reviewed(settings, token, prompt, token_ids)
                    margin = min(margin, gap)
                token_ids.append(token)
            authors.append(author)
            hit_runs.append(None)
            if leads:
                other = self._next_logits("draft", context)
                margin = min(margin, _gap(other))
                aligned.append(int(other.argmax()) == int(logits.argmax()))
                hit_runs[-1] = _hit_run(aligned, settings)

            ends_text = token_ids[-1] in self._ends(settings)
            if ends_text and pending is None:
                finish_reason = "stop"
                break

            delta = readable(token_ids).removeprefix(readable(token_ids[:-1]))
            if ends_text:
                detector.settle()
            boundary = Boundary.END_BEFORE if ends_text else detector.feed(delta)
            if boundary is Boundary.END_BEFORE:
                assert pending is not None
                sentences.append((start, pending, led))
                start, pending = pending, None
                led = self._is_led(settings, sentences, prompt, token_ids[:start])
                given = self._cue(settings, led, [*prompt, *token_ids[:start]])
                begun = False
                opener = "leader" if _leads(led, [], settings, begun=False) else "draft"
                written = len(token_ids) - start
                reviewed = settings.policy == "review"  # written anew, it will be the same
                if given or reviewed or any(writer != opener for writer in authors[start:]):
                    taken_back += written
                    del token_ids[start:], authors[start:], hit_runs[start:]
                    aligned = []
                    continue
                aligned = aligned[-written:] if opener == "leader" else []
                for i in range(written):
                    hit_runs[start + i] = _hit_run(aligned[: i + 1], settings)
                if ends_text:
                    finish_reason = "stop"
                    break
                boundary = detector.feed(delta)

            begun = begun or detector.has_begun or boundary is Boundary.END
            if boundary is not Boundary.PENDING:
                pending = None
            elif delta:  # a token without text leaves the mark before it pending
                pending = len(token_ids)

            if _first_stop(readable(token_ids), token_ids, settings) is not None:
                finish_reason = "stop"
                break
            if len(token_ids) == self._limit or len(prompt) + len(token_ids) == self._max_context:
                finish_reason = "length"
                break

            if leads and begun and boundary is Boundary.NONE:
                self._stopped = self._is_spent()
            if boundary is Boundary.END:
                sentences.append((start, len(token_ids), led))
                start = len(token_ids)
                led = self._is_led(settings, sentences, prompt, token_ids)
                given = self._cue(settings, led, [*prompt, *token_ids])
                aligned, begun = [], False
            elif boundary is Boundary.BELONGS_BEFORE:
                aligned = []
                if sentences:
                    sentences[-1] = (sentences[-1][0], len(token_ids), sentences[-1][2])
                    start = len(token_ids)

        if sentences and not begun:
            sentences[-1] = (sentences[-1][0], len(token_ids), sentences[-1][2])
        elif start < len(token_ids):
            sentences.append((start, len(token_ids), led))
        shown = token_ids[:-1] if token_ids[-1] in self._ends(settings) else token_ids
        text = str(self._pair.tokenizer.decode(shown, skip_special_tokens=True))
        return Answer(
            token_ids=tuple(token_ids),
            authors=tuple(authors),
            sentences=tuple(sentences),
            text=text[: _first_stop(text, token_ids, settings)],
            finish_reason=finish_reason,
            hit_runs=tuple(hit_runs),
            margin=margin,
            taken_back=taken_back,
        )

    @torch.no_grad()
    def _next_logits(self, author: str, ids: Sequence[int]) -> Tensor:
        key = (author, tuple(ids))
        if key not in self._known:
            model = self._pair.model(author)
            self._known[key] = model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
        return self._known[key]

    def _ends(self, settings: FoReaLConfig) -> set[int]:
        return {self._pair.tokenizer.eos_token_id, *settings.stop_token_ids}

    def _ruled(
        self, logits: Tensor, settings: FoReaLConfig, prompt: Sequence[int], written: Sequence[int]
    ) -> Tensor:
        """Biases, then forbidden ids, then penalties."""
        logits = logits.clone()
        for token, value in (settings.logit_bias or {}).items():
            logits[token] += value
        if len(written) < settings.min_tokens:
            logits[list(self._ends(settings))] = -torch.inf
        for word in settings.bad_words:
            ids = [word] if isinstance(word, int) else list(word)
            if list(written[len(written) - len(ids) + 1 :]) == ids[:-1]:
                logits[ids[-1]] = -torch.inf
        for token in {*prompt, *written}:
            penalty = settings.repetition_penalty
            logits[token] = (
                logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
            )
            times = list(written).count(token)
            logits[token] -= settings.frequency_penalty * times
            logits[token] -= settings.presence_penalty * (times > 0)
        return logits

    def _is_led(
        self,
        settings: FoReaLConfig,
        sentences: Sequence[tuple[int, int, bool]],
        prompt: Sequence[int],
        token_ids: Sequence[int],
    ) -> bool:
        """Whether the sentence after these is led."""
        options = dict(settings.policy_options or {})
        if settings.policy == "entropy":
            ahead: list[int] = []
            while not readable(ahead).strip():
                over = len(token_ids) + len(ahead) >= self._limit
                if ahead and (over or ahead[-1] in self._ends(settings)):
                    break
                chances = self._next_logits("draft", [*prompt, *token_ids, *ahead]).softmax(-1)
                ahead.append(self._drawn("draft", settings, prompt, [*token_ids, *ahead]))
            first, second = chances.topk(2).values.tolist()
            unsure = -float((chances * chances.log()).sum())
            if options.get("measure") == "gap":
                unsure = 1 - (first - second)
            self._unsure.append(unsure)
            if options.get("threshold") is not None:
                return unsure > float(options["threshold"])
            larger = sum(other > unsure for other in self._unsure)
            return larger < self._chance(float(options["share"])) * len(self._unsure)
        if settings.policy == "cues":
            ahead = []
            while True:
                ahead.append(self._drawn("draft", settings, prompt, [*token_ids, *ahead]))
                text = readable(ahead).lstrip()
                for cue in options["cues"]:
                    if text == cue or (text.startswith(cue) and not text[len(cue)].isalnum()):
                        return True
                over = len(token_ids) + len(ahead) >= self._limit
                if over or ahead[-1] in self._ends(settings):
                    return False
                if not any(cue.startswith(text) for cue in options["cues"]):
                    return False
        p = settings.lead_probability
        if settings.policy == "review":
            p = float(options["lead_probability"])
        return self._gate(settings, len(sentences), self._chance(p))

    def _limit_of_draft(self) -> int:
        """Tokens that the text can have."""
        return self._limit

    def _is_spent(self) -> bool:
        """Whether the leader writes no more of the sentence."""
        return False

    def _chance(self, usual: float) -> float:
        """The share of led sentences."""
        return usual

    def _gate(self, settings: FoReaLConfig, sentence: int, p: float) -> bool:
        assert settings.seed is not None
        if settings.policy != "even":
            return gate_draw(settings.seed, sentence) < p
        self._due += Fraction(str(p))
        leads = p > 0 and self._evenly_led < self._due
        self._evenly_led += leads
        return leads

    def _drawn(
        self, author: str, settings: FoReaLConfig, prompt: Sequence[int], written: Sequence[int]
    ) -> int:
        assert settings.seed is not None
        logits = self._next_logits(author, [*prompt, *written])
        ruled = self._ruled(logits, settings, prompt, written)[None]
        return draw(ruled, [settings], [settings.seed], [len(written)], [None]).tokens[0]

    def _reviewed(
        self, settings: FoReaLConfig, token: int, prompt: Sequence[int], written: Sequence[int]
    ) -> tuple[int, str, float]:
        """What stands where the draft drew `token`, by whom, and how clear that is."""
        tolerance = float(dict(settings.policy_options or {})["tolerance"])
        assert settings.seed is not None
        logits = self._next_logits("leader", [*prompt, *written])
        own = self._drawn("leader", settings, prompt, written)
        if token == own or tolerance == 0:
            return token, "draft", _gap(logits)
        scores = self._ruled(logits, settings, prompt, written)[None].double()
        if settings.temperature > 0:
            noise = gumbel_noise([settings.seed], [len(written)], len(logits), logits.device)
            kept = _warped(scores.float(), [settings]).isfinite()
            scores = (scores + settings.temperature * noise).masked_fill(~kept, -torch.inf)
        ratio = float((scores[0, token] - scores[0, own]).exp())
        gap = min(_gap(logits), abs(ratio - tolerance))
        stands = ratio >= tolerance and tolerance < 1
        return (token, "draft", gap) if stands else (own, "leader", gap)

    def _cue(self, settings: FoReaLConfig, led: bool, context: Sequence[int]) -> list[int]:
        if settings.policy != "wait" or not led:
            return []
        before = str(self._pair.tokenizer.decode(context[-1], skip_special_tokens=True))
        cue = "Wait," if not before or before[-1].isspace() else " Wait,"
        return list(self._pair.tokenizer(cue).input_ids)


# The fixture `reference_of`.
ReferenceOf = Callable[[Family], Reference]


class _Detector:
    """Sentence ends by the chosen mode; the paper's rule is written out."""

    def __init__(self, settings: FoReaLConfig) -> None:
        paper = settings.sentence_boundary == "paper"
        self._robust = None if paper else SentenceBoundaryDetector("robust")

    def feed(self, text: str) -> Boundary:
        if self._robust is not None:
            return self._robust.feed(text)
        ends = "\n" in text or text.rstrip().endswith((".", "!", "?", "。", "！", "？"))
        return Boundary.END if ends else Boundary.NONE

    def settle(self) -> None:
        if self._robust is not None:
            self._robust.settle()

    @property
    def has_begun(self) -> bool:
        return self._robust is None or self._robust.has_begun


def _leads(led: bool, aligned: Sequence[bool], settings: FoReaLConfig, *, begun: bool) -> bool:
    """Whether the leader writes the next token of a sentence."""
    over = _hands_over(aligned, settings) and (begun or not aligned)
    return led and settings.policy != "wait" and not over


def _hit_run(aligned: Sequence[bool], settings: FoReaLConfig) -> int | None:
    """The run that ends with the leader's last token; None where its position does not count."""
    counted = aligned if settings.hit_window == "sentence" else aligned[settings.lead_count :]
    if not counted:
        return None
    run = 0
    for hit in counted:
        run = run + 1 if hit else 0
    return run


def _hands_over(aligned: Sequence[bool], settings: FoReaLConfig) -> bool:
    """lambda >= n and h >= k; `aligned` has one entry per token of the leader."""
    run = _hit_run(aligned, settings) or 0
    return len(aligned) >= settings.lead_count and run >= settings.hit_threshold


def _first_stop(text: str, token_ids: Sequence[int], settings: FoReaLConfig) -> int | None:
    """Where the earliest stop string begins, behind the first `min_tokens` tokens."""
    first = len(readable(token_ids[: settings.min_tokens]))
    found = [text.find(stop, first) for stop in settings.stop]
    return min((at for at in found if at >= 0), default=None)


def _gap(logits: Tensor) -> float:
    best, second = logits.topk(2).values.tolist()
    return best - second
