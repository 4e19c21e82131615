"""A short run of the fuzzer without coverage: `make fuzz-files` goes on for as long as one likes."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest

import bnfold
from bnfold import folding
from bnfold.errors import ModelError
from bnfold.plan import Rewrite
from bnfold.write import folded
from tests import fuzzer
from tests.fuzzed import FOUND
from tests.fuzzer import attempt, mutated, scrambled, seeds
from tests.program import foldable

FILES = 300


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    return list(seeds())


def test_every_seed_is_right(corpus: list[bytes]) -> None:
    ends = Counter(attempt(data).split(":")[0] for data in corpus)
    assert len(corpus) > 250 and ends["folded"] > 150 and not ends["refused"], ends


def test_mutated_files_break_nothing(corpus: list[bytes]) -> None:
    ends: Counter[str] = Counter()
    with np.errstate(all="ignore"):
        for number in range(FILES):
            rng = random.Random(number)
            data = mutated(rng.choice(corpus), rng) or b""
            ends[attempt(data).split(":")[0]] += 1
    assert min(ends["folded"], ends["refused"], ends["nothing to fold"]) > FILES // 10, ends


def test_bytes_break_nothing(corpus: list[bytes]) -> None:
    for number in range(60):
        rng = random.Random(number)
        attempt(scrambled(rng.choice(corpus), rng))
        attempt(rng.randbytes(40))
    assert attempt(b"").startswith("refused")


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_found_no_more(name: str) -> None:
    with np.errstate(all="ignore"):
        assert attempt(base64.b85decode(FOUND[name])).startswith("folded")


# ----------------------------------------------------------------------------------------- what the fuzzer would see


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = folded

    def wrong(rewrite: Rewrite, exact: bool = False) -> onnx.ModelProto:
        made = right(rewrite, exact)
        if exact:
            made.graph.node[-1].op_type = "Abs"
            made.graph.node[-2].op_type = "Neg"
            del made.graph.node[-2].input[1:]
        return made

    monkeypatch.setattr(fuzzer, "folded", wrong)
    with pytest.raises(AssertionError, match=r"is off by|shape"):
        attempt(foldable().SerializeToString())


def test_a_bug_is_seen_on_a_valid_model_and_the_model_blamed_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(folding.Folder, "solve", broken)
    model = foldable()
    library: list[Callable[[bytes], object]] = [bnfold.explain, partial(bnfold.optimize, verify=False)]
    for run in (attempt, *library):
        with pytest.raises(IndexError, match="a bug"):
            run(model.SerializeToString())
    model.graph.node[2].input[0] = "nowhere"
    for run in library:
        with pytest.raises(ModelError, match="is not a valid ONNX model: "):
            run(model.SerializeToString())
    assert attempt(model.SerializeToString()).startswith("refused: the model is not a valid ONNX model")


def test_an_input_that_takes_much_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "MEMORY", 32 << 20)
    assert fuzzer.frugal(foldable().SerializeToString()) == "folded"
    monkeypatch.setattr(fuzzer, "attempt", lambda _: str(len(b"x" * fuzzer._peak())))
    with pytest.raises(AssertionError, match="too much memory"):
        fuzzer.frugal(b"")
