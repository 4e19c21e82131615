"""Branches of one tensor in a sum with other terms between them: which stand together once the sum is regrouped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from operator import length_hint

from bnfold.graph import Graph, Node
from bnfold.merges.nodes import dynamic, is_linear
from bnfold.merges.search import Found, joined, members_of, only_scales, steps_in, weighted, without_kernels
from bnfold.merges.terms import ObstacleError
from bnfold.merges.trees import Term, Tree, trees

DEEP = 16
"""Nodes that a term is looked through for what it has in common with others."""

Judge = Callable[[Found], str]
"""What speaks against a merge; '' for nothing."""


def gather(
    graph: Graph, allowed: Callable[[Node], bool], judge: Judge
) -> Iterator[tuple[Tree, list[list[Term]], dict[str, None]]]:
    """Every sum with branches that become one although other terms stand between; and why others do not quite."""
    steps = steps_in(graph)
    for tree in trees(graph, allowed):
        if not length_hint(steps):
            return
        work = _Gathering(tree, allowed, judge, steps)
        groups = work.groups()
        if groups or work.obstacles:
            yield tree, groups, work.obstacles


class _Gathering:
    def __init__(self, tree: Tree, allowed: Callable[[Node], bool], judge: Judge, steps: Iterator[int]) -> None:
        self.tree, self.allowed, self.judge, self.steps = tree, allowed, judge, steps
        self.graph = tree.root.graph
        self.obstacles: dict[str, None] = {}
        self.enough = weighted

    def groups(self) -> list[list[Term]]:
        """The terms of each branch, several at least; the whole sum, and what stands together already, left out."""
        allowed = self.allowed
        left, found = list(self.tree.terms), list[list[Term]]()
        together = list(self.tree.under().values())
        for self.enough, self.allowed in ((weighted, allowed), (only_scales, without_kernels(allowed))):
            told = dict(self.obstacles)
            if len(left) == len(self.tree.terms) and self._merges(left):
                return []
            self.obstacles = told  # what speaks against the whole sum is found without regrouping
            for source in self._shared(left):
                while len(own := [term for term in left if source in self._ancestors(term.name)]) > 1:
                    group = self._largest(own)
                    if not group:
                        break
                    left = [term for term in left if term not in group]
                    if {term.place for term in group} not in together:
                        found.append(group)
        return found

    def _shared(self, terms: Sequence[Term]) -> list[str]:
        """Tensors that several terms are made of, those of most terms first, and of these the ones made last."""
        count: dict[str, int] = {}
        for term in terms:
            for name in self._ancestors(term.name):
                count[name] = count.get(name, 0) + 1
        several = [name for name, times in count.items() if times > 1]
        return sorted(several, key=lambda name: (-count[name], -self._place(name)))

    def _place(self, name: str) -> int:
        made = self.graph.producers.get(name)
        return -1 if made is None else made.index

    def _ancestors(self, name: str) -> set[str]:
        """The tensor, and what it is a linear map of."""
        found, front = {name}, [name]
        while front and len(found) <= DEEP:
            made = self.graph.producers.get(front.pop())
            new = set(dynamic(made)) - found if made is not None and is_linear(made) else set[str]()
            found |= new
            front += new
        return found

    def _largest(self, terms: Sequence[Term]) -> list[Term]:
        """As many of them as become one; none where no two do."""
        if self._merges(terms):
            return list(terms)
        for pair in combinations(terms, 2) if len(terms) > 2 else ():
            if not length_hint(self.steps):
                break
            if self._merges(pair):
                group = list(pair)
                for term in terms:
                    if term not in group and self._merges([*group, term]):
                        group.append(term)
                return group
        return []

    def _merges(self, terms: Sequence[Term]) -> bool:
        """Whether these terms become one; notes why not, where they almost do."""
        root = self.tree.root
        places = {term.place: term.name for term in terms}
        try:
            members = members_of(root, self.allowed, self.enough, places, self.steps) - {root}
            obstacle = self.judge(joined(root, members, [(term.name, term.sign) for term in terms]))
        except ObstacleError as error:
            obstacle = "" if error.unrelated else str(error)
            if not error.unrelated:
                self.obstacles[obstacle] = None
            return False
        if obstacle:
            self.obstacles[obstacle] = None
        return not obstacle
