"""Which form of tool calls a chat template takes: found by trying, since templates do not say.

One wants the content of a message with calls to be None, another fails at that; one writes the
arguments as JSON, another puts what it is given into the text; one insists on ids of nine letters.
A small tool conversation is rendered in each form, and the first that shows calls and results whole
is used from then on.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, get_args

from foreal_core.errors import ConfigError
from foreal_core.text.call_syntax import (
    HERMES,
    CallSyntax,
    common_length,
    find_call,
    read_syntax,
)
from foreal_core.text.template_trials import found_once, rendered
from foreal_core.text.tool_messages import (
    Arguments,
    Beside,
    Content,
    Ids,
    Message,
    ToolForm,
    in_form,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESULT_ROLES: Final = ("tool", "observation", "ipython", "function")
# No two of these texts start or end alike, and none is part of another.
_QUESTION, _TEXT, _ANSWER = "Which qarp?", "Looking up jyx.", "Vorm it is."
_CALLS: Final = (
    ("zz_first", {"zz_place": 'Aix "1"', "zz_days": 3, "zz_warm": True, "zz_note": None}),
    ("yy_second", {"yy_place": 'Bex "2"', "yy_days": [4], "yy_warm": False, "yy_note": None}),
)
_RESULTS: Final = ("kelp 31", "mulm 42")
_PARAMETERS: Final = {
    "type": "object",
    "properties": {"xx_parameter": {"type": "string"}},
    "required": ["xx_parameter"],
}
_OFFERED: Final = {"name": "xx_offered", "description": "Looks up.", "parameters": _PARAMETERS}
_TOOLS: Final = [{"type": "function", "function": _OFFERED}]


def shows_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template shows the tools that it is given."""

    def attempt() -> bool:
        text = rendered(tokenizer, [_said("user", _QUESTION)], _TOOLS) or ""
        return "xx_offered" in text and "xx_parameter" in text

    return found_once(tokenizer, "shows tools", attempt)


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tools can be given: the chat template shows them, calls of them and results."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    return shows_tools(tokenizer) and tool_form(tokenizer, tools=True) is not None


def tool_form(tokenizer: PreTrainedTokenizerBase, *, tools: bool) -> ToolForm | None:
    """The form in which the chat template shows tool calls; None where it shows them in none.

    Args:
        tokenizer: has a chat template; what was found is kept for as long as that stays the same.
        tools: the conversation shows tools; some templates take another way then.
    """
    return found_once(tokenizer, ("tool form", tools), lambda: _tried(tokenizer, tools))


def call_syntax(tokenizer: PreTrainedTokenizerBase) -> CallSyntax:
    """What the model writes where it calls tools; Hermes' syntax where the template does not
    tell."""
    if not getattr(tokenizer, "chat_template", None):
        return HERMES
    form = tool_form(tokenizer, tools=True)
    return HERMES if form is None else form.syntax


def hidden_marks(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids and spellings of the special tokens that mark tool calls: decoded text leaves them
    out."""

    def attempt() -> dict[int, str]:
        marks = call_syntax(tokenizer).marks
        added = tokenizer.added_tokens_decoder.items()
        return {i: str(one) for i, one in added if one.special and str(one) in marks}

    return found_once(tokenizer, "hidden marks", attempt)


def refuse_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ConfigError unless the chat template shows tools, calls of them and their results."""
    named = f" of {name}" if (name := getattr(tokenizer, "name_or_path", "")) else ""
    if not shows_tools(tokenizer):
        raise ConfigError(
            f"tools were given, but the chat template{named} knows no tools: use a model that was "
            "trained to call them, or set tokenizer.chat_template to a template that shows `tools`."
        )
    if tool_form(tokenizer, tools=True) is None:
        raise ConfigError(
            f"tools were given, but the chat template{named} shows no call of a tool whole: its "
            'name, its arguments as JSON and its result. It was tried with content "", none and '
            "without content, with arguments as a mapping and as JSON text, with results in "
            f"messages of role {', '.join(_RESULT_ROLES)}. Set tokenizer.chat_template to a "
            "template that shows calls."
        )


def _tried(tokenizer: Any, tools: bool) -> ToolForm | None:
    forms = (
        ToolForm(arguments=arguments, ids=ids, content=content, result_role=role)
        for arguments, ids, content, role in itertools.product(
            get_args(Arguments), get_args(Ids), get_args(Content), _RESULT_ROLES
        )
    )
    form = next((one for one in forms if _shows(tokenizer, one, tools, calls=1)), None)
    if form is None:
        return None
    if not _shows(tokenizer, form, tools, calls=2):
        form = replace(form, several=False)
    for beside in get_args(Beside):
        form = replace(form, beside=beside)
        if _shows(tokenizer, form, tools, calls=1, text=_TEXT):
            break
    return replace(form, syntax=_syntax(tokenizer, form, tools) or HERMES)


def _shows(tokenizer: Any, form: ToolForm, tools: bool, *, calls: int, text: str = "") -> bool:
    """Whether the template shows a conversation in this form whole."""
    results = [{**_said("tool", _RESULTS[at]), "tool_call_id": _id(at)} for at in range(calls)]
    turns = [_said("user", _QUESTION), _asked(calls, text), *results]
    chat = in_form([*turns, _said("assistant", _ANSWER), _said("user", _QUESTION)], form)
    shown = rendered(tokenizer, chat, _TOOLS if tools else None, form.prelude)
    if shown is None:
        return False
    wanted = [_RESULTS[at] for at in range(calls)] + [_ANSWER]
    if text and form.beside != "left out":
        wanted.append(text)
    whole = all(find_call(shown, *call) is not None for call in _CALLS[:calls])
    return whole and all(one in shown for one in wanted)


def _syntax(tokenizer: Any, form: ToolForm, tools: bool) -> CallSyntax | None:
    """What the template makes of calls, without what it puts around every answer."""
    offered = _TOOLS if tools else None
    question = _said("user", _QUESTION)
    answered = rendered(tokenizer, [question, _said("assistant", _ANSWER)], offered)
    count = 2 if form.several else 1
    chat = in_form([question, _asked(count)], form)
    called = rendered(tokenizer, chat, offered, form.prelude)
    if answered is None or called is None or _ANSWER not in answered:
        return None
    frame, _, end = answered.rpartition(_ANSWER)
    written = called[common_length(frame, called) :]
    return read_syntax(written.removesuffix(end), _CALLS[:count])


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _asked(calls: int, text: str = "") -> Message:
    made = [
        {"id": _id(at), "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(_CALLS[:calls])
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


def _id(at: int) -> str:
    return f"call_{at:032x}"  # in the shape of most ids
