"""Bugs put into the folding code, and which layers of the proof see them, each by itself.

A bug replaces some text of one function. It stays in the code while the proof runs, as a bug of ours would.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from types import CodeType, FunctionType

import onnx

from bnfold.certificate import certify
from bnfold.equivalence import Settings, verified
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.result import RuntimeCheck, Verification
from bnfold.folding import Folder
from bnfold.graph import Model
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.source import read
from bnfold.write import folded
from tests.builder import Builder

LAYERS = ("certificate", "algebra", "noise", "runtime off", "runtime on")

CONSTANT, CONDITION, WIRING, ROUNDING, READING = "constant", "side condition", "wiring", "rounding", "reading"
"""What a bug changes: a number that is stored, where a fold may be made, or what a node reads. The last two change only
how numbers are rounded, or how the whole program reads the model."""

CERTAIN = {CONSTANT, CONDITION, WIRING}
"""What the certificate alone must see."""

Make = Callable[[Builder], object]


@dataclass(frozen=True, eq=False)
class Bug:
    """In the function `where` (module:name) the text `old` becomes `new`; the model that `make` builds is folded wrong.

    `seen` has the layers that see it, by their number in LAYERS; `blind` says why the others do not.
    """

    name: str
    changes: str
    where: str
    old: str
    new: str
    make: Make
    seen: str = "01234"
    blind: str = ""
    opset: int = 17
    type: int = onnx.TensorProto.FLOAT

    def model(self) -> onnx.ModelProto:
        """The model, in which the bug matters."""
        b = Builder(self.opset, self.type)
        outputs = self.make(b)
        return b.model(*outputs) if isinstance(outputs, tuple) else b.model()

    @property
    def layers(self) -> list[str]:
        """The layers that claim to see it."""
        return [LAYERS[int(number)] for number in self.seen]


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The bug is in the code until the block ends, whoever holds the function."""
    module, _, name = bug.where.partition(":")
    function = inspect.unwrap(reduce(getattr, name.split("."), importlib.import_module(module)))  # type: ignore[arg-type]
    assert isinstance(function, FunctionType)
    right = function.__code__
    function.__code__ = _mutated(function, bug)
    try:
        yield
    finally:
        function.__code__ = right


def _mutated(function: FunctionType, bug: Bug) -> CodeType:
    file = inspect.getsourcefile(function)
    assert file is not None
    text = Path(file).read_text(encoding="utf-8")
    lines, start = inspect.getsourcelines(function)
    own = "".join(lines)
    assert own.count(bug.old) == 1, f"{bug.name}: {bug.old!r} stands {own.count(bug.old)} times in {bug.where}"
    before, after = text.split("\n", start - 1)[:-1], text.split("\n")[start - 1 + len(lines) :]
    changed = "\n".join([*before, own.replace(bug.old, bug.new).rstrip("\n"), *after])
    return _code_of(compile(ast.parse(changed), file, "exec"), function.__code__.co_qualname)


def _code_of(code: CodeType, qualname: str) -> CodeType:
    stack = [code]
    while stack:
        found = stack.pop()
        if found.co_qualname == qualname:
            return found
        stack += [constant for constant in found.co_consts if isinstance(constant, CodeType)]
    raise AssertionError(qualname)


@dataclass(frozen=True)
class Proof:
    """What every layer says of one fold: by layer, why it refuses it; '' where it sees nothing wrong."""

    folds: int
    said: dict[str, str]

    @property
    def seen(self) -> list[str]:
        """The layers that see something."""
        return [layer for layer in LAYERS if self.said[layer]]


def certificate_alone(model: onnx.ModelProto) -> str:
    """Fold and certify; nothing runs. The first failure, or ''."""
    rewrite = _planned(model)
    proof = certify(Model(read(model)), Model(read(folded(rewrite))), witness_of(rewrite))
    return "" if proof.ok else str(proof.failures[0])


def proved(model: onnx.ModelProto) -> Proof:
    """Fold, and ask every layer by itself."""
    rewrite = _planned(model)
    result = folded(rewrite)
    certificate = certify(Model(read(model)), Model(read(result)), witness_of(rewrite))
    run = verified(model, result, Settings(providers=["cpu"], locate=False), fold=rewrite)
    said = {
        "certificate": "" if certificate.ok else str(certificate.failures[0]),
        "algebra": run.algebra.problem if run.algebra is not None else "",
        "noise": _problem(run.noise.stored),
        **{f"runtime {level}": _ran(run, level) for level in ("off", "on")},
    }
    return Proof(len(rewrite.merges) + sum(len(own.removed) for own in rewrite.plan.graphs), said)


@cache
def measured(bug: Bug) -> Proof:
    """What every layer says while the bug is in the code."""
    with planted(bug):
        return proved(bug.model())


def _planned(model: onnx.ModelProto) -> Rewrite:
    return Folder(Model(read(model))).solve().rewrite


def _problem(checks: tuple[OutputCheck, ...]) -> str:
    return next((f"{check.output}: {check.problem}" for check in checks if not check.passed), "")


def _ran(run: Verification, level: str) -> str:
    for check in run.runtime:
        return _problem(check.outputs.get(level, ())) or _failed(check, level)
    return ""


def _failed(check: RuntimeCheck, level: str) -> str:
    """A model that does not even run."""
    start = f"{check.provider}, optimisations {level}: the optimized model fails"
    return next((problem for problem in check.problems if problem.startswith(start)), "")
