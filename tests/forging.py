"""Forged releases by the thousand: a manifest with parts of it changed, beside the model that it is of or another one.

    python -m tests.forging [COUNT] [SEED]

Whatever a manifest says, `bnfold.audit` refuses it in one line, finds that something does not hold, or is right: a
model with another weight passes only where the outputs in float64 do not depend on that weight.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold.errors import BnfoldError
from bnfold.hashes import digest
from bnfold.oracle import Oracle
from tests.fuzzer import feeds, seeds

TOLERANCE = 1e-5
"""Of the largest magnitude in an output: the constants of a fold are rounded to float32."""

Place = tuple[str | int, ...]

ODD: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        3,
        2**31,
        2**63,
        -(2**63),
        10**30,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "AAAA",
        "/",
        None,
        True,
    ),
    *([], {}, [[]], {"a": 1}, "\ud800", "[1]", [0], ["x", "y"]),
)


class Release(NamedTuple):
    """A model, what it was folded to, and the manifest of that."""

    original: Path
    optimized: Path
    told: dict[str, Any]


def releases(folder: Path, rng: random.Random, most: int) -> list[Release]:
    """Folds of small models of many kinds, written to a folder."""
    found: list[Release] = []
    models = list(seeds())
    rng.shuffle(models)
    for number, model in enumerate(models):
        original, optimized = folder / f"{number}.onnx", folder / f"{number}.folded.onnx"
        original.write_bytes(model)
        with contextlib.suppress(BnfoldError):
            bnfold.optimize(original, optimized, verify=False)
            told = json.loads(Path(f"{optimized}.manifest.json").read_text())
            found += [Release(original, optimized, told)] if told["witness"]["graphs"] else []
        if len(found) == most:
            break
    return found


def changed(told: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One to three parts of a manifest changed, taken out, or put in elsewhere; mostly of its witness."""
    made: dict[str, Any] = copy.deepcopy(told)
    for _ in range(rng.randint(1, 3)):
        places = [place for place in _places(made) if place and (place[0] == "witness" or rng.random() < 0.15)]
        if places:
            *above, key = rng.choice(places)
            _change(_at(made, tuple(above)), key, copy.deepcopy(_at(made, rng.choice(places))), rng)
    return made


def _change(parent: Any, key: Any, other: Any, rng: random.Random) -> None:
    value, way = parent[key], rng.randrange(6)
    if way == 0:
        del parent[key]
    elif way == 1:
        parent[key] = other
    elif way == 2 and isinstance(parent, list):
        parent.append(copy.deepcopy(rng.choice(parent)))
    elif way == 2:
        parent[rng.choice(["new", "0", "", *parent])] = copy.deepcopy(value)
    elif way == 3 and isinstance(value, str) and value:
        at = rng.randrange(len(value))
        parent[key] = value[:at] + rng.choice("AB/=x0 ") + value[at + 1 :]
    elif way == 3 and type(value) in (int, float):
        parent[key] = rng.choice([value + 1, value - 1, -value, 2 * value, 1e30 * value])
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))


def _places(part: Any, here: Place = ()) -> Iterator[Place]:
    yield here
    inside = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in inside:
        yield from _places(value, (*here, key))


def _at(part: Any, place: Place) -> Any:
    for key in place:
        part = part[key]
    return part


def with_another_weight(model: onnx.ModelProto, rng: random.Random) -> bool:
    """Change one number in a constant of a model; False where there is none."""
    tensors = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
        and not (tensor.external_data or tensor.HasField("segment") or 0 in tensor.dims)
    ]
    if not tensors:
        return False
    tensor = rng.choice(tensors)
    values = numpy_helper.to_array(tensor).copy()
    at = rng.randrange(values.size)
    before = values.flat[at]
    values.flat[at] = rng.choice([1.01 * before, before + 0.01, -before, 0.0])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return bool(values.flat[at] != before)


def forge(release: Release, rng: random.Random) -> str:
    """One forged release; says what became of it.

    Raises:
        AssertionError: a model that computes something else has passed.
        Exception: the audit broke.
    """
    folder = release.original.parent
    optimized, manifest = folder / "forged.onnx", folder / "forged.manifest.json"
    told = changed(release.told, rng) if rng.random() < 0.8 else copy.deepcopy(release.told)
    optimized.write_bytes(release.optimized.read_bytes())
    model = onnx.load(release.optimized)
    if rng.random() < 0.5 and with_another_weight(model, rng):
        optimized.write_bytes(model.SerializeToString())
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # that part of the manifest is broken
            told["optimized"].update(bytes=optimized.stat().st_size, sha256=digest(optimized).sha256)
    manifest.write_text(json.dumps(told))
    try:
        found = bnfold.audit(manifest, release.original, optimized)
    except BnfoldError:
        return "refused"
    if found.problems:
        return "certificate" if any("certificate" in problem for problem in found.problems) else "files"
    assert _same(onnx.load(release.original), onnx.load(optimized)), "another function has passed"
    return "holds"


def _same(original: onnx.ModelProto, optimized: onnx.ModelProto) -> bool:
    """Whether both make the same in float64, as far as this can be told."""
    given = feeds(original)
    try:
        before = {} if given is None else Oracle(original).run(given)
    except BnfoldError:  # an operator of somebody else
        return True
    after = {} if given is None else Oracle(optimized).run(given)
    pairs = [(x, after[name]) for name, x in before.items() if x.dtype.kind == "f"]
    return all(np.max(np.abs(y - x), initial=0.0) <= TOLERANCE * np.max(np.abs(x), initial=1e-30) for x, y in pairs)


def main(count: int, seed: int) -> Counter[str]:
    """Forge that many releases."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        given = releases(Path(folder), rng, 40)
        return Counter(forge(rng.choice(given), rng) for _ in range(count))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    ended = main(*(numbers + [20_000, 1][len(numbers) :]))
    sys.stdout.write(f"{ended.total()} forged releases: {dict(ended)}\n")
