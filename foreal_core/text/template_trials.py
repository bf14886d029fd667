"""Chat templates tried out: what they make of small conversations tells what they take."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_found: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def found_once(tokenizer: Any, what: object, attempt: Callable[[], T]) -> T:
    """What `attempt` found out, kept while the tokenizer's chat template stays the same."""
    known = _found.setdefault(tokenizer, {})
    key = (str(tokenizer.chat_template), what)
    if key not in known:
        known[key] = attempt()
    found: T = known[key]
    return found


def rendered(
    tokenizer: Any,
    chat: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    prelude: str = "",
) -> str | None:
    """The conversation as the template writes it; None where it refuses it.

    Args:
        prelude: template text that is put before the template.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                list(chat),
                tools=tools,
                chat_template=prelude + tokenizer.get_chat_template(tools=tools),
                tokenize=False,
            )
        )
    except Exception:
        return None  # templates raise what they like, and that is what is tried here
