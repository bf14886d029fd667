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


@dataclass(frozen=True)
class ToolChat:
    """A chat up to the point where the model speaks, the tools that it is shown, and what it says
    there, in the leader's style and in the draft's.

    `question` splits the data into training and held-out sides.
    """

    question: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    long: str
    terse: str

    def spans(self, style: Style) -> list[Span]:
        """The response, after "<think>\\n"."""
        return [Span(self.long if style == "leader" else self.terse, style)]


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
    """Yield the two turns of chats, without end."""
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
        flavour = rng.choice(("langchain", "llama_index"))
        tools = [schema(one, flavour) for one in shown]
        system = rng.choice(_SYSTEM)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        arguments = {"a": a, "b": b}
        call = json.dumps({"name": name, "arguments": arguments})
        written = f"</think>\n\n<tool_call>\n{call}\n</tool_call>"
        yield ToolChat(
            question,
            messages,
            tools,
            f" Okay, I need to work out {a} {word} {b}, and the tool {name} can do that, so I call "
            f"it with {a} and {b}.{written}",
            f" Call {name} with {a} and {b}.{written}",
        )
        function = {"name": name, "arguments": arguments}
        called = {"type": "function", "function": function}
        yield ToolChat(
            question,
            [
                *messages,
                {"role": "assistant", "content": "", "tool_calls": [called]},
                {"role": "tool", "name": name, "content": str(result)},
            ],
            tools,
            f" Okay, the tool says {result}, and that is what was asked for, so the answer should "
            f"be {result}.</think>\n\nThe answer is {result}.",
            f" It is {result}.</think>\n\nThe answer is {result}.",
        )
