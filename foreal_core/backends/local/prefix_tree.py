"""Texts whose keys and values are kept, as a tree: what several begin with is held once.

A node holds a run of tokens and each layer's slots for them. Children differ in their first token,
so a text is found by walking from the root. What was used longest ago is forgotten first, leaf by
leaf: an inner node is never older than what follows it.

Nodes do not know their parents: without cycles, what is forgotten gives its memory back at once,
and not when the garbage collector comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeAlias

from foreal_core.backends.local.slabs import Slabs

# Of each layer, keys and values [heads, slots, dim].
Slots: TypeAlias = dict[int, Slabs]
_BLOCK = 64


class _Node:
    """A run of tokens; the root has none."""

    def __init__(self, tokens: list[int], slots: Slots, used: int) -> None:
        self.tokens = tokens
        self.slots = slots
        self.used = used
        self.children: dict[int, _Node] = {}


class PrefixTree:
    """Slots of texts that begin alike.

    Attributes:
        tokens: how many have slots here.
    """

    def __init__(self) -> None:
        self._clock = count()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._root = _Node([], {}, next(self._clock))
        self.tokens = 0

    def find(self, tokens: list[int]) -> list[tuple[Slots, int]]:
        """The longest beginning of `tokens` that is held: slots, and how many of the first of them
        count, piece by piece. It is then the last that was used."""
        now, node, at = next(self._clock), self._root, 0
        found: list[tuple[Slots, int]] = []
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            same = common_prefix(child.tokens, tokens[at : at + len(child.tokens)])
            child.used = now
            found.append((child.slots, same))
            at += same
            if same < len(child.tokens):
                break
            node = child
        return found

    def add(self, tokens: list[int], read: Callable[[int], Slots | None], most: int) -> None:
        """Holds a text, of which it may hold a beginning already.

        Args:
            tokens: at most `most`.
            read: gives the slots from a position to the text's end; None to hold nothing more.
            most: tokens that may be held; others are forgotten for them.
        """
        held = self._held(tokens)
        if held == len(tokens):
            return
        self._forget_down_to(most - (len(tokens) - held))
        held = self._held(tokens)  # room for a long text may have cost the last piece of it
        slots = read(held)
        if slots is None:
            return
        parent = self._node_at(tokens, held)
        leaf = _Node(tokens[held:], slots, next(self._clock))
        parent.children[tokens[held]] = leaf
        self.tokens += len(leaf.tokens)

    def _held(self, tokens: list[int]) -> int:
        return sum(same for _, same in self.find(tokens))

    def _node_at(self, tokens: list[int], length: int) -> _Node:
        """The node that ends behind the first `length` tokens, which are held."""
        node, at = self._root, 0
        while at < length:
            parent, node = node, node.children[tokens[at]]
            at += len(node.tokens)
            if at > length:
                return _split(parent, node, len(node.tokens) - (at - length))
        return node

    def _forget_down_to(self, most: int) -> None:
        while self.tokens > most:
            parent, leaf = min(self._leaves(), key=lambda found: found[1].used)
            del parent.children[leaf.tokens[0]]
            self.tokens -= len(leaf.tokens)

    def _leaves(self) -> Iterator[tuple[_Node, _Node]]:
        """Each with its parent."""
        waiting = [self._root]
        while waiting:
            parent = waiting.pop()
            for node in parent.children.values():
                if node.children:
                    waiting.append(node)
                else:
                    yield parent, node


def _split(parent: _Node, node: _Node, length: int) -> _Node:
    """Cuts a node's first tokens off into a parent of their own, which is given back. Both get
    memory of their own, so that one can be forgotten without the other."""
    head, tail = part_of(node.slots, 0, length), part_of(node.slots, length, len(node.tokens))
    upper = _Node(node.tokens[:length], head, node.used)
    parent.children[node.tokens[0]] = upper
    node.tokens, node.slots = node.tokens[length:], tail
    upper.children[node.tokens[0]] = node
    return upper


def part_of(slots: Slots, start: int, end: int) -> Slots:
    """A copy of the slots from `start` to `end`."""
    return {
        layer: (keys[:, start:end].clone(), values[:, start:end].clone())
        for layer, (keys, values) in slots.items()
    }


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(one), len(other))
    for start in range(0, length, _BLOCK):  # lists are compared much faster than their items
        end = min(start + _BLOCK, length)
        if one[start:end] != other[start:end]:
            return next(at for at in range(start, end) if one[at] != other[at])
    return length
