"""The `tools` format: sums that a tool does. A question, a call, the tool's result, the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from foreal_core.demo.chains import Span, Style

# Name, what it is called in a question, how the tool is described.
OPERATIONS = {
    "add": ("plus", "Add two whole numbers."),
    "subtract": ("minus", "Subtract the second whole number from the first."),
    "multiply": ("times", "Multiply two whole numbers."),
}
_QUESTIONS = ("What is {a} {word} {b}?", "How much is {a} {word} {b}?")
_SYSTEM = ("", "", "You are a helpful assistant.", "You are a helpful assistant. Use the tools.")


# For agents that ask for calls in plain text, the ReAct way; LlamaIndex fills it in
# (`ReActChatFormatter(system_header=REACT_HEADER)`).
REACT_HEADER = (
    "You can use these tools.\n{tool_desc}\nTo use one, write three lines: Thought, Action (one of "
    "{tool_names}) and Action Input (JSON). Once you know the answer, write two lines: Thought and "
    "Answer."
)
_REACT_SHARE = 0.35


@dataclass(frozen=True)
class ToolChat:
    """A chat up to the point where the model speaks, the tools that it is shown, and what it says
    there: a thought in the leader's style or in the draft's, and what follows it.

    `question` splits the data into training and held-out sides.
    """

    question: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    long: str
    terse: str
    said: str

    def spans(self, style: Style) -> list[Span]:
        """The response, after "<think>\\n"."""
        thought = self.long if style == "leader" else self.terse
        # What is said to the world is the same whoever writes it.
        said = Span(f"</think>\n\n{self.said}", "leader")
        return [Span(f" {thought}.", style, own=1), said]


def schema(name: str, flavour: str) -> dict[str, Any]:
    """A tool in OpenAI's JSON, as "langchain" or "llama_index" renders a Python function."""
    description = OPERATIONS[name][1]
    if flavour == "llama_index":
        description = f"{name}(a: int, b: int) -> int\n{description}"
        properties = {one: {"title": one.upper(), "type": "integer"} for one in ("a", "b")}
    else:
        properties = {one: {"type": "integer"} for one in ("a", "b")}
    parameters = {"properties": properties, "required": ["a", "b"], "type": "object"}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def chats(rng: Random) -> Iterator[ToolChat]:
    """Yield the two turns of chats, without end: a call, and the answer from its result."""
    while True:
        shown = rng.sample(sorted(OPERATIONS), rng.choice((1, 2, 2, 3)))
        name = rng.choice(shown)
        word = OPERATIONS[name][0]
        if name == "multiply":
            a, b = rng.randint(2, 14), rng.randint(2, 14)
        else:
            a, b = sorted((rng.randint(2, 99), rng.randint(2, 99)), reverse=True)
        result = {"add": a + b, "subtract": a - b, "multiply": a * b}[name]
        question = rng.choice(_QUESTIONS).format(a=a, word=word, b=b)
        user = {"role": "user", "content": question}
        needs = (
            f"Okay, I need to work out {a} {word} {b}, and the tool {name} can do that, so I call "
            f"it with {a} and {b}",
            f"Call {name} with {a} and {b}",
        )
        has = (
            f"Okay, the tool says {result}, and that is what was asked for, so the answer should "
            f"be {result}",
            f"It is {result}",
        )
        arguments = {"a": a, "b": b}
        answer = f"The answer is {result}."
        if rng.random() < _REACT_SHARE:
            described = "\n".join(_described(one) for one in shown)
            header = REACT_HEADER.format(tool_desc=described, tool_names=", ".join(shown))
            asked = [{"role": "system", "content": header}, user]
            acted = f"Thought: I need the tool {name}.\nAction: {name}\nAction Input: "
            yield ToolChat(question, asked, None, *needs, acted + json.dumps(arguments))
            # LlamaIndex shows the arguments of a call that was made as Python writes them.
            made = {"role": "assistant", "content": f"{acted}{arguments}"}
            seen = {"role": "user", "content": f"Observation: {result}"}
            known = f"Thought: I know the answer.\nAnswer: {answer}"
            yield ToolChat(question, [*asked, made, seen], None, *has, known)
            continue
        flavour = rng.choice(("langchain", "llama_index"))
        tools = [schema(one, flavour) for one in shown]
        system = rng.choice(_SYSTEM)
        asked = [{"role": "system", "content": system}, user] if system else [user]
        function = {"name": name, "arguments": arguments}
        call = f"<tool_call>\n{json.dumps(function)}\n</tool_call>"
        yield ToolChat(question, asked, tools, *needs, call)
        called: list[dict[str, Any]] = [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": function}],
            },
            {"role": "tool", "name": name, "content": str(result)},
        ]
        yield ToolChat(question, [*asked, *called], tools, *has, answer)


def _described(name: str) -> str:
    """A tool as LlamaIndex's ReAct agent describes it."""
    function = schema(name, "llama_index")["function"]
    parameters = json.dumps(function["parameters"])
    return (
        f"> Tool Name: {name}\nTool Description: {function['description']}\n"
        f"Tool Args: {parameters}\n"
    )
