"""Coverage-guided fuzzing of read, solve, certify and write: no crash, no hang, no wrong result.

    python -m tests.fuzzer SEEDS [libFuzzer's options]     with atheris: `make fuzz-files`
    python -m tests.fuzzer --again FILE...                 one input, as atheris kept it

An input is a model file, mutated field by field, or, where it is no model, the choices of which a random graph is made.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from bnfold.certificate import certify
from bnfold.errors import BnfoldError, NotEquivalentError
from bnfold.folding import Folder
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.rules import RULES
from bnfold.source import ModelLike, read
from bnfold.validity import blames_the_model
from bnfold.write import folded
from tests.features import FEATURES, with_feature
from tests.hostile import ATTACKS
from tests.keyed import is_repeated
from tests.program import foldable, stubborn
from tests.test_bodies import CASES
from tests.test_computed import CASES as COMPUTED
from tests.test_computed import model_of
from tests.test_functions import FOLDS
from tests.test_fuzz import Choices, Numbers, build
from tests.text import build as from_text

TOLERANCE = 1e-6
"""Of the largest magnitude in an output: constants were not rounded, but hostile numbers cancel."""

MEMORY = 700 << 20
"""Bytes by which one input may raise the peak."""

NUMBERS = (0, 1, -1, 2, 3, 7, 255, -(2**31), 2**31, 2**40, -(2**63), 2**63 - 1)
REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e30, float("inf"), float("nan"))


# --------------------------------------------------------------------------------------------------------------- seeds


def seeds() -> Iterator[bytes]:
    """Small models with everything that the tests know of, and a few random graphs."""
    yield foldable().SerializeToString()
    yield stubborn().SerializeToString()
    for name in FEATURES:
        yield with_feature(name, fold=True).SerializeToString()
    for graph, _ in CASES.values():
        with contextlib.suppress(Exception):  # one is completed by its test
            yield from_text(graph).SerializeToString()
    for graph, functions, _ in FOLDS.values():
        yield from_text(graph, *functions).SerializeToString()
    for case, _ in COMPUTED:
        yield model_of(case).SerializeToString()
    for number in range(150):
        b, outputs = build(Numbers(number))
        if b.nodes:
            yield b.model(*outputs).SerializeToString()


def hostile_seeds(folder: Path) -> Iterator[bytes]:
    """The models that somebody made to do harm, where they are small files."""
    for number, (attack, _) in enumerate(ATTACKS.values()):
        (place := folder / str(number)).mkdir()
        path = attack(place)
        if path.stat().st_size < 20_000:
            yield path.read_bytes()


# ----------------------------------------------------------------------------------------------------------- mutations


def mutated(data: bytes, rng: random.Random) -> bytes | None:
    """A model with one to four fields changed; None where the bytes are no model."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return None
    for _ in range(rng.randint(1, 4)):
        with contextlib.suppress(ValueError, TypeError, UnicodeError):  # fields that do not take the value
            _change(model, rng)
    return bytes(model.SerializeToString())


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, cut out or put in."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        found[at : at + rng.randrange(3)] = bytes(rng.randrange(256) for _ in range(rng.randrange(3)))
    return bytes(found)


def _change(model: onnx.ModelProto, rng: random.Random) -> None:
    found: list[Message] = []
    _collect(model, found)
    message = rng.choice(found)
    fields = [field for field, _ in message.ListFields()] if rng.random() < 0.8 else message.DESCRIPTOR.fields
    if not fields:
        return
    field = rng.choice(list(fields))
    if is_repeated(field):
        _change_list(getattr(message, field.name), field, found, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        _replace(getattr(message, field.name), found, rng)
    else:
        setattr(message, field.name, _scalar(getattr(message, field.name), field, found, rng))


def _collect(message: Message, found: list[Message]) -> None:
    found.append(message)
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE and len(found) < 2000:
            for inner in value if is_repeated(field) else [value]:
                _collect(inner, found)


def _change_list(values: Any, field: FieldDescriptor, found: list[Message], rng: random.Random) -> None:
    way, count = rng.randrange(5), len(values)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if way == 0 or not count:
            _replace(values.add(), found, rng)
        elif way == 1:
            values.add().CopyFrom(values[rng.randrange(count)])
        elif way == 2:
            del values[rng.randrange(count)]
        elif way == 3:
            one, other = values[rng.randrange(count)], values[rng.randrange(count)]
            kept = type(one)()
            kept.CopyFrom(one)
            one.CopyFrom(other)
            other.CopyFrom(kept)
        else:
            _replace(values[rng.randrange(count)], found, rng)
    elif way == 0 or not count:
        values.append(_scalar(values[0] if count else None, field, found, rng))
    elif way == 1:
        del values[rng.randrange(count) :]
    elif way == 2:
        del values[rng.randrange(count)]
    else:
        at = rng.randrange(count)
        values[at] = _scalar(values[at], field, found, rng)


def _replace(message: Message, found: list[Message], rng: random.Random) -> None:
    alike = [other for other in found if type(other) is type(message)]
    if alike and rng.random() < 0.8:
        copy = type(message)()
        copy.CopyFrom(rng.choice(alike))
        message.CopyFrom(copy)
    else:
        message.Clear()


def _scalar(value: Any, field: FieldDescriptor, found: list[Message], rng: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        if field.name == "op_type" and rng.random() < 0.7:
            return rng.choice(sorted(RULES))
        names = [text for m in found for text in getattr(m, "input", []) if isinstance(text, str)]
        names += [m.name for m in found if isinstance(getattr(m, "name", None), str)]
        return rng.choice([*names, "", "new"])
    if field.type == FieldDescriptor.TYPE_BYTES:
        data = bytearray(value or b"")
        for _ in range(rng.randint(0, 4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(REALS)
    number = int(value or 0)
    return rng.choice([*NUMBERS, number + 1, number - 1, 2 * number, rng.randrange(30)])


# ------------------------------------------------------------------------------------------------------------ the test


class Bytes(Choices):
    """Choices that are read from bytes; 0 when these are used up."""

    def __init__(self, data: bytes) -> None:
        self.data = iter(data)
        self.values = []

    def below(self, n: int) -> int:
        return (next(self.data, 0) << 8 | next(self.data, 0) if n > 256 else next(self.data, 0)) % n


def attempt(data: bytes) -> str:
    """Fold what these bytes stand for; says how that ended.

    Raises:
        AssertionError: the result is wrong.
        Exception: bnfold broke.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        b, outputs = build(Bytes(data))
        if not b.nodes:
            return "nothing"
        data = b.model(*outputs).SerializeToString()
    try:
        return _folded(data)
    except NotEquivalentError:
        raise
    except BnfoldError as error:
        return f"refused: {error}"


def frugal(data: bytes) -> str:
    """The same, of which no input may take much memory. Of its own, what records coverage takes ever more."""
    before = _peak()
    ended = attempt(data)
    assert _peak() - before < MEMORY, "one input took too much memory"
    return ended


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@blames_the_model
def _folded(model: ModelLike) -> str:
    given = Model(read(model))
    rewrite = Folder(given).solve().rewrite
    if rewrite.is_empty:
        return "nothing to fold"
    made = folded(rewrite)
    proof = certify(given, Model(read(made)), witness_of(rewrite))
    if not proof.ok:
        raise NotEquivalentError(str(proof.failures[0]))
    return _same_values(given.proto, rewrite)


def _same_values(original: onnx.ModelProto, rewrite: Rewrite) -> str:
    """Compare both in float64, the folded one with constants that were not rounded."""
    values = feeds(original)
    if values is None:
        return "folded, too large to run"
    exact = folded(rewrite, exact=True)
    try:
        before = Oracle(original, max_macs=1e9, max_bytes=1e8).run(values)
    except Exception:  # noqa: BLE001 - whatever is wrong with the original
        return "folded, cannot be run"
    after = Oracle(exact, max_macs=1e9, max_bytes=1e8).run(values)
    for name, wanted in before.items():
        found = after[name]
        assert wanted.shape == found.shape, f"{name}: shape {found.shape}, not {wanted.shape}"
        if wanted.dtype.kind != "f" or not np.all(np.isfinite(wanted)):
            continue
        size = max(float(np.max(np.abs(wanted), initial=0.0)), 1e-30)
        off = float(np.max(np.abs(found - wanted), initial=0.0)) / size
        if off > TOLERANCE:
            noise = _noise(original, values, name, wanted) / size
            assert off <= 100 * noise, f"{name} is off by {off:.1e} of its size, and by {noise:.1e} from rounding"
    return "folded"


def _noise(original: onnx.ModelProto, values: dict[str, Any], name: str, wanted: Any) -> float:
    """What float64 may make of an output by chance: the sine of a huge number, the difference of two, what is left of
    a constant that is normalised. Every tensor is off by a few units in the last place."""
    rng = np.random.default_rng(8)

    def about(x: Any) -> Any:
        return 1 + 2.0**-50 * rng.uniform(-1, 1, x.shape)

    beside, moved = onnx.ModelProto(), onnx.ModelProto()
    beside.CopyFrom(original)
    known = {value.name for value in original.graph.output}
    for inner in dict.fromkeys(inner for node in original.graph.node for inner in node.output if inner):
        if inner not in known:
            beside.graph.output.add(name=inner)
    inside = Oracle(beside, max_macs=1e9, max_bytes=1e8).run(values)
    floats = {inner: x for inner, x in inside.items() if x.dtype.kind == "f"}
    moved.CopyFrom(original)
    del moved.graph.node[:]
    for node in original.graph.node:
        added = moved.graph.node.add()
        added.CopyFrom(node)
        for slot, inner in enumerate(node.output):
            if inner in floats:
                added.output[slot] = f"{inner}.exact"
                moved.graph.initializer.append(onnx.numpy_helper.from_array(about(floats[inner]), f"{inner}.about"))
                moved.graph.node.add(op_type="Mul", input=[f"{inner}.exact", f"{inner}.about"], output=[inner])
    given = {inner: x * about(x) if x.dtype.kind == "f" else x for inner, x in values.items()}
    found = Oracle(moved, max_macs=1e9, max_bytes=1e8).run(given)
    largest = max((float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0)) for x in floats.values()), default=0.0)
    return max(float(np.max(np.abs(found[name] - wanted), initial=0.0)), 2.0**-52 * largest)


def feeds(model: onnx.ModelProto) -> dict[str, Any] | None:
    """Values for the inputs; None where these are large, or no tensors of numbers."""
    rng, given = np.random.default_rng(7), {tensor.name for tensor in model.graph.initializer}
    found: dict[str, Any] = {}
    for value in model.graph.input:
        if value.name in given:
            continue
        shape = [dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]
        if min(shape, default=1) < 0 or np.prod(np.array(shape, float)) > 1e5 or len(shape) > 8:
            return None
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            found[value.name] = rng.normal(0.3, 1.5, shape).astype(dtype)
        except (KeyError, TypeError, ValueError):
            return None
    return found


def main(atheris: Any) -> None:
    """Fuzz until libFuzzer's options say that it is enough."""

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        made = mutated(data, rng) if rng.random() < 0.9 else None
        return made if made is not None and len(made) <= most else scrambled(data, rng)[:most]

    np.seterr(all="ignore")
    atheris.Setup(sys.argv, frugal, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == "--again":
        for name in sys.argv[2:]:
            sys.stdout.write(f"{name}: {attempt(Path(name).read_bytes())}\n")
    else:
        import atheris

        with atheris.instrument_imports(include=["bnfold"]):
            for name in [name for name in sys.modules if name.split(".")[0] in ("bnfold", "tests")]:
                del sys.modules[name]
            fuzzer = importlib.import_module("tests.fuzzer")
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (folder / f"seed{number}").write_bytes(seed)
        fuzzer.main(atheris)
