"""Tensors that become one where affines leave between them."""

from __future__ import annotations

from collections.abc import Callable


class Joined:
    """Sets of tensors that are one by now (disjoint sets, by path halving and by size)."""

    def __init__(self, must_stay: Callable[[str], bool]) -> None:
        self._must_stay = must_stay
        self._parent: dict[str, str] = {}
        self._size: dict[str, int] = {}
        self._named: dict[str, bool] = {}
        """By the tensor that stands for a set."""

    def join(self, one: str, other: str) -> None:
        """Both are one tensor."""
        one, other = self._find(one), self._find(other)
        if one == other:
            return
        if self._size[one] < self._size[other]:
            one, other = other, one
        self._parent[other] = one
        self._size[one] += self._size[other]
        self._named[one] |= self._named[other]

    def is_named(self, name: str) -> bool:
        """Whether a tensor, or one that it is one with, has a name that must stay."""
        return self._named[self._find(name)]

    def _find(self, name: str) -> str:
        if name not in self._parent:
            self._parent[name], self._size[name], self._named[name] = name, 1, self._must_stay(name)
        while (above := self._parent[name]) != name:
            self._parent[name] = name = self._parent[above]
        return name
