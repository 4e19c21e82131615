"""Guards that can be switched off one at a time: modules are imported with a switch around every condition.

A mutant is one change to one condition: an `if` that never holds, an operand of `and` or `or` that is left out, a call
made only for its refusal that is not made. All of them stand in the code at once, and one at most is active.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

OFF, ON, CALL = "__off__", "__on__", "__call_for_refusal__"
"""Names under which instrumented code calls :meth:`Switches.off`, :meth:`Switches.on` and :meth:`Switches.call`."""


@dataclass(frozen=True)
class Mutant:
    """One condition, changed."""

    module: str
    path: str
    function: str
    line: int
    kind: str
    """never: the condition is false; without: an operand is left out; skipped: the call is not made."""
    text: str

    @property
    def place(self) -> str:
        """File and line."""
        return f"{self.path}:{self.line}"


@dataclass
class Switches:
    """All mutants of the modules imported so far, and the one that is active."""

    mutants: dict[str, Mutant] = field(default_factory=dict)
    """By a key that a change of other lines leaves as it is."""
    active: str = ""
    fired: set[str] = field(default_factory=set)
    """Where the mutant would have made a difference, since this was last cleared."""

    def off(self, key: str, value: Any) -> Any:
        """The value, never true where the mutant is active."""
        if value:
            self.fired.add(key)
            if key == self.active:
                return False
        return value

    def on(self, key: str, value: Any) -> Any:
        """The value, always true where the mutant is active."""
        if not value:
            self.fired.add(key)
            if key == self.active:
                return True
        return value

    def call(self, key: str, make: Callable[[], object]) -> None:
        """Make a call, which makes a difference where it raises, unless the mutant is active."""
        if key == self.active:
            return
        try:
            make()
        except Exception:
            self.fired.add(key)
            raise

    def add(self, mutant: Mutant) -> str:
        """A new mutant's key."""
        base = f"{mutant.module}.{mutant.function}: {mutant.kind}: {mutant.text}"
        key = next(key for n in range(1000) if (key := f"{base} #{n}" if n else base) not in self.mutants)
        self.mutants[key] = mutant
        return key


class _Instrument(ast.NodeTransformer):
    """Puts a switch around conditions."""

    def __init__(self, switches: Switches, module: str, path: str, every: bool) -> None:
        self.switches, self.module, self.path, self.every = switches, module, path, every
        self.function: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._within(node, node.name)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._within(node, node.name)

    def _within(self, node: ast.AST, name: str) -> ast.AST:
        self.function.append(name)
        self.generic_visit(node)
        self.function.pop()
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        text, guards = ast.unparse(node.test), refuses(node)
        if guards:
            node.test = self._operands(node.test)
        if guards or self.every:
            node.test = self._switch(OFF, "never", text, node.test)
        node.body = [self.visit(one) for one in node.body]
        node.orelse = [self.visit(one) for one in node.orelse]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if _in_rules(self.module) and _refuses_alone(node.value):
            given = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
            text, later = ast.unparse(node.value), ast.Lambda(given, node.value)
            return ast.copy_location(ast.Expr(self._switch(CALL, "skipped", text, later, node.value)), node)
        self.generic_visit(node)
        return node

    def _operands(self, test: ast.expr) -> ast.expr:
        """The condition, with a switch around every operand of its `and` and `or`."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test.operand = self._operands(test.operand)
        if not isinstance(test, ast.BoolOp):
            return test
        whole, neutral = ast.unparse(test), OFF if isinstance(test.op, ast.Or) else ON
        values: list[ast.expr] = []
        for value in test.values:
            if _narrows(value):
                values.append(value)
                continue
            text = f"{ast.unparse(value)}  in  {whole}"
            values.append(self._switch(neutral, "without", text, self._operands(value), value))
        test.values = values
        return test

    def _switch(self, how: str, kind: str, text: str, value: ast.expr, at: ast.expr | None = None) -> ast.expr:
        at = value if at is None else at
        key = self.switches.add(Mutant(self.module, self.path, ".".join(self.function), at.lineno, kind, text))
        call = ast.Call(ast.Name(how, ast.Load()), [ast.Constant(key), value], [])
        return ast.fix_missing_locations(ast.copy_location(call, at))


def _in_rules(module: str) -> bool:
    """Whether a bare call there may be made for its refusal."""
    return module.startswith("bnfold.rules")


WRITE = frozenset({"_add_up"})
"""Functions that are called for what they write, not for a refusal."""


def _refuses_alone(value: ast.expr) -> bool:
    """Whether a statement is a call that is made for its refusal."""
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id not in WRITE


def refuses(node: ast.If) -> bool:
    """Whether an `if` guards: it raises, or returns a reason or a failure; others choose between ways."""
    last = node.body[-1]
    if isinstance(last, ast.Raise):
        return True
    answer = last.value if isinstance(last, ast.Return) else None
    return isinstance(answer, ast.Call) and ast.unparse(answer.func) in {"Reason", "Failure", "no", "pinned_reason"}


def _narrows(operand: ast.expr) -> bool:
    """Whether an operand is there for the types: without it the next one would raise."""
    text = ast.unparse(operand)
    return text.endswith((" is None", " is not None")) or text.startswith(("isinstance(", "not isinstance("))


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its switches; no bytecode is written."""

    def __init__(self, name: str, path: str, switches: Switches, every: bool) -> None:
        super().__init__(name, path)
        self.switches, self.every = switches, every

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(Path(self.path).read_text(encoding="utf-8"), self.path)
        tree = _Instrument(self.switches, fullname, os.path.relpath(self.path), self.every).visit(tree)
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update({OFF: self.switches.off, ON: self.switches.on, CALL: self.switches.call})
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules to instrument, on `sys.meta_path`."""

    def __init__(self, switches: Switches, modules: dict[str, bool]) -> None:
        self.switches, self.modules = switches, modules

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's spec, with our loader."""
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in self.modules else None
        if spec is None or spec.origin is None:
            return None
        spec.loader = _Loader(name, spec.origin, self.switches, self.modules[name])
        return spec


def install(modules: dict[str, bool]) -> Switches:
    """Instrument modules when they are imported: the conditions that refuse; every one where the value is true."""
    switches = Switches()
    assert not modules.keys() & sys.modules.keys()
    sys.meta_path.insert(0, Finder(switches, modules))
    return switches
