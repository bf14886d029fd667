"""Answers that are JSON of a given schema, or tool calls, whoever writes them: a grammar over the
pair's tokens.

A wrapper of llguidance (extra "json"). The grammar holds after the thinking, never inside it, and
masks the logits of leader and draft alike, proposals included, so it survives every hand-off. An
answer that the length limit would cut off is closed in time instead, and so is a thinking that
would leave no room for one.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foreal_core.config import FoReaLConfig
from foreal_core.errors import ConfigError, FoReaLError
from foreal_core.grammar.call_grammar import CallGrammar
from foreal_core.grammar.completion import Ending, EndingFinder
from foreal_core.grammar.json_features import UnheldSchemaError, described
from foreal_core.grammar.spelling import marking_tokens, serialized_for_grammars
from foreal_core.grammar.thoughts import Thoughts
from foreal_core.text.tool_forms import call_syntax

# Characters of an error message: some of llguidance's hold whole regular expressions.
_MOST_TOLD = 300
_SCHEMAS = ("json_schema", "call_schema")


class ConstraintFactory:
    """Compiles schemas for one tokenizer; keep it, building it walks the whole vocabulary.

    Args:
        tokenizer: a fast tokenizer of transformers.
        vocabulary: width of the leader's logits.
        end_of_sequence: ids that end a text.

    Raises:
        ConfigError: llguidance is not installed, no token ends a text, or the tokenizer is not a
            fast one.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_of_sequence: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise ConfigError(
                "a JSON schema needs the extra 'json': pip install 'foreal-decoding[json]'."
            ) from error
        if not end_of_sequence:
            raise ConfigError(
                "a JSON schema needs a token that ends the text, and this pair has none: set "
                "eos_token_id in the leader's generation_config or eos_token in its tokenizer."
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"a JSON schema needs a fast tokenizer; {type(tokenizer).__name__} is none."
            )
        self._marking = marking_tokens(tokenizer)
        try:
            self._tokenizer = llguidance.LLTokenizer(
                serialized_for_grammars(tokenizer, self._marking),
                n_vocab=vocabulary,
                eos_token=list(end_of_sequence),
            )
        except ValueError as error:
            raise ConfigError(
                f"a JSON schema is not possible with {type(tokenizer).__name__}: {error}"
            ) from error
        self._source = tokenizer
        self._matcher = llguidance.LLMatcher
        self._ways = EndingFinder(self._tokenizer)
        self._vocabulary = vocabulary
        self._end_of_sequence = tuple(end_of_sequence)

    def compile(self, config: FoReaLConfig, prompt: Sequence[int], limit: int) -> Constraint:
        """The constraint of one request.

        Args:
            config: its settings, with at least one schema.
            prompt: its token ids; they tell where the thinking stands.
            limit: tokens that the completion has at most.

        Raises:
            ConfigError: llguidance cannot compile a schema; the message says why.
        """
        given = [name for name in _SCHEMAS if getattr(config, name) is not None]
        try:
            grammar = self._grammar(config, bounded=True)
            if self._matcher.validate_grammar(grammar, self._tokenizer):
                # llguidance knows no bounds beside some other keywords.
                grammar = self._grammar(config, bounded=False)
            problem = _told(self._matcher.validate_grammar(grammar, self._tokenizer))
        except UnheldSchemaError as error:
            problem = str(error)
        if problem:
            raise ConfigError(f"{' or '.join(given)} is not allowed: {problem}")
        matcher = self._matcher(self._tokenizer, grammar)
        if self._allows_nothing(matcher):
            raise ConfigError(
                f"{' or '.join(given)} is not allowed: no value follows it that the model's "
                "tokenizer can spell."
            )
        return Constraint(
            matcher,
            self._ways,
            self._vocabulary,
            limit,
            self._end_of_sequence,
            Thoughts(self._source, prompt),
        )

    def _allows_nothing(self, matcher: Any) -> bool:
        """Whether nothing may come after the white space that an answer may begin with."""
        copy = matcher.deep_copy()
        copy.try_consume_tokens(self._tokenizer.tokenize_bytes(b"\n\n"))
        allowed = _allowed_by(copy, self._vocabulary)
        allowed[list(self._end_of_sequence)] = False
        return not allowed.any()

    def _grammar(self, config: FoReaLConfig, *, bounded: bool) -> str:
        """A grammar of answers of any of the schemas, after a little white space."""

        def json_rule(schema: Mapping[str, Any]) -> str:
            return f"%json {json.dumps(described(schema, bounded=bounded))}"

        rules: list[str] = []
        ways: list[str] = []
        if config.json_schema is not None:
            ways.append("json_schema")
            rules.append(f"json_schema: {json_rule(json.loads(str(config.json_schema)))}")
        if config.call_schema is not None:
            ways.append("call_schema")
            syntax = call_syntax(self._source)
            marks = {mark: token for token, mark in self._marking.items() if mark in syntax.marks}
            calls = CallGrammar(syntax, marks, json_rule)
            schema = json.loads(str(config.call_schema))
            required = config.call_required or config.json_schema is not None
            rules += calls.rules("call_schema", schema, required=required)
        start = f"start: /[ \\n]{{0,2}}/ ({' | '.join(ways)})"
        return "\n".join([start, *rules]) + "\n"


def _allowed_by(matcher: Any, vocabulary: int) -> np.ndarray:
    """A boolean [vocabulary] of the ids that may come next."""
    packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little")[:vocabulary].astype(bool)


def _told(problem: str) -> str:
    """What llguidance says is wrong, without our grammar, which nobody has seen."""
    lines = problem.strip().splitlines()
    told = " ".join(line.strip() for line in lines if not re.match(r"\s*(\d+ \||\^\s*$)", line))
    told = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", told).strip()
    if told.startswith("oneOf constraints are not supported"):
        told = "oneOf is not supported unless its schemas exclude each other: use anyOf"
    return textwrap.shorten(told, _MOST_TOLD, placeholder=" ...")


class Constraint:
    """Which ids may come next in one text. Follows the text by itself, back and forth: it is told
    the whole completion each time and moves the grammar by the difference.

    What it answers hangs on the completion alone, not on what it was asked before: proposals that
    were rejected leave no trace.
    """

    def __init__(
        self,
        matcher: Any,
        ways: EndingFinder,
        vocabulary: int,
        limit: int,
        end_of_sequence: Sequence[int],
        thoughts: Thoughts,
    ) -> None:
        self._matcher = matcher
        self._fresh = matcher.deep_copy()
        self._finder = ways
        self._vocabulary = vocabulary
        self._limit = limit
        self._end_of_sequence = end_of_sequence
        self._thoughts = thoughts
        self._consumed = 0  # tokens of the answer
        self._read: list[int] = []  # the completion so far
        self._settled = 0  # so many of them were the text's own, and still are
        # How the answer could end after each of its first tokens: one more than are consumed.
        self._ways: list[Ending] = [ways.start(matcher)]

    def cut(self, length: int) -> None:
        """The text's completion was shortened to `length` tokens."""
        self._settled = min(self._settled, length)

    def allowed(self, completion: Sequence[int], written: int = 0) -> np.ndarray | None:
        """A boolean [vocabulary] for the id after `completion`; None while nothing is ruled out.
        Where nothing is left to write that is the end of the text, which `fitted` refuses.

        Args:
            completion: ids; of a long one only what is new is looked at.
            written: how many of them stand in the text, of whose shortening `cut` is told. The
                others, and all of one that is not followed so, are compared with those of the
                last call.

        Raises:
            FoReaLError: the tokenizer cannot spell what is asked for.
        """
        follows = self._follow(completion, written)
        openers = self._thoughts.openers()
        if not follows and not openers:
            return None
        if follows:
            allowed = _allowed_by(self._matcher, self._vocabulary)
            if self._matcher.is_error():
                # Nothing may come next, after which the matcher would answer no more.
                self._matcher = self._fresh.deep_copy()
                answer = self._read[len(self._read) - self._consumed :]
                self._matcher.try_consume_tokens(answer)
        else:
            allowed = np.zeros(self._vocabulary, dtype=bool)
        allowed[openers] = True
        return allowed

    def fitted(
        self,
        completion: Sequence[int],
        token: int,
        written: int = 0,
        *,
        proposed: bool = False,
    ) -> int:
        """What is to follow `completion` where a model wrote `token`: the same, as long as the
        answer can still end within the limit after it; else what leads to its end.

        Args:
            completion, written: as in `allowed`.
            proposed: the token may still be rejected.

        Raises:
            FoReaLError: the text would end in the middle, as nothing is left to write.
        """
        room = self._limit - len(completion)
        ends = token in self._end_of_sequence
        follows = self._follow(completion, written, () if ends else (token,))
        if self._thoughts.answer_start is None:
            return self._fitted_thought(completion, room, token)
        if ends and follows and not proposed and not self._matcher.is_accepting():
            raise FoReaLError(
                "the text cannot go on under its json_schema or call_schema: nothing that the "
                "schema allows there can be spelled by the model's tokenizer."
            )
        if ends or not follows:
            return token
        if self._ways[-1].fits(room - 1) or not self._follow(completion, written):
            return token
        here = self._ways[-1]
        if not here.fits(room):
            return token
        return here.tokens[0] if here.tokens else self._end_of_sequence[0]

    def _fitted_thought(self, completion: Sequence[int], room: int, token: int) -> int:
        """The same inside the thinking: it ends where the model would end the text, and while
        there is room for twice the shortest answer that is known."""
        shortest = self._ways[0]
        left = self._thoughts.end_after(completion)
        if not left or shortest.tokens is None or not shortest.fits(room - len(left)):
            return token
        goes_on = token not in self._end_of_sequence
        if goes_on and room - 1 - len(left) >= 2 * len(shortest.tokens):
            return token
        return left[0]

    def _follow(self, completion: Sequence[int], written: int, ahead: Sequence[int] = ()) -> bool:
        """Moves to the end of the completion and of what is ahead of it; whether that lies in the
        answer, and not beyond the grammar's own end, as a proposal after an end of sequence
        does."""
        same = min(self._settled, written)
        new = [*completion[same:], *ahead]
        common = same + _common_length(self._read[same:], new)
        if common < len(self._read):
            self._rewind(common)
        self._settled = min(written, common)
        for token in new[common - same :]:
            if self._thoughts.answer_start is not None and self._matcher.is_stopped():
                return False
            self._thoughts.feed(token)
            self._read.append(token)
            self._settled = min(written, len(self._read))
            start = self._thoughts.answer_start
            if start is not None and start < len(self._read):
                self._consume(token)
        return self._thoughts.answer_start is not None

    def _consume(self, token: int) -> None:
        if not self._matcher.try_consume_tokens([token]):
            raise FoReaLError(
                "the text left its schema: the model's tokenizer cannot spell what the "
                "json_schema or call_schema asks for."
            )
        self._consumed += 1
        room = self._limit - len(self._read)
        self._ways.append(self._finder.after(self._ways[-1], token, self._matcher, room))

    def _rewind(self, length: int) -> None:
        """Back to the first `length` tokens of the completion."""
        del self._read[length:]
        self._thoughts.rewind(length)
        start = self._thoughts.answer_start
        consumed = 0 if start is None else length - start
        if consumed < self._consumed:
            self._matcher.rollback(self._consumed - consumed)
            del self._ways[consumed + 1 :]
            self._consumed = consumed


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
