"""A witness as plain data and back, bit by bit: what a manifest holds of it.

Arrays stand in one list, each once: shape, and base64 of little-endian float64. A storage is three places in it. What
is read is checked as what a stranger wrote: form, types, sizes, and that every number is finite.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bnfold.affine import Array, Storage, TooLargeError
from bnfold.source import MOST_AXES
from bnfold.witness import Call, GraphWitness, Merged, Narrowed, Regrouped, Sum, Where, Witness


def to_data(witness: Witness) -> dict[str, Any]:
    """The witness as lists, dicts, numbers and strings; equal witnesses give equal data."""
    arrays: dict[tuple[tuple[int, ...], bytes], int] = {}

    def place(array: Array) -> int:
        return arrays.setdefault((array.shape, np.ascontiguousarray(array, "<f8").tobytes()), len(arrays))

    graphs = [
        {
            "path": graph.path,
            "storage": {
                name: [place(part) for part in (stored.den, stored.num, stored.off)]
                for name, stored in sorted(graph.storage.items())
            },
            "removed": [[index, *ends] for index, ends in sorted(graph.removed.items())],
            "names": dict(sorted(graph.names.items())),
            "merged": [[root, merged.kept, list(merged.members)] for root, merged in sorted(graph.merged.items())],
            **_regrouped_data(graph),
        }
        for graph in witness.graphs
    ]
    calls = [
        {"where": [list(step) for step in where], "label": call.label, "names": dict(sorted(call.names.items()))}
        for where, call in sorted(witness.calls.items())
    ]
    encoded = [{"shape": list(shape), "data": base64.b64encode(data).decode()} for shape, data in arrays]
    narrowed = {"type": witness.narrowed.type, "carries": dict(sorted(witness.narrowed.carries.items()))}
    return {"arrays": encoded, "graphs": graphs, "calls": calls, "narrowed": narrowed}


def _regrouped_data(graph: GraphWitness) -> dict[str, Any]:
    """Nothing for a graph whose sums are as they were."""
    found = [
        [list(each.nodes), [[made.like, made.op, list(made.inputs), made.output] for made in each.sums]]
        for each in graph.regrouped
    ]
    return {"regrouped": found} if found else {}


def from_data(data: object, most: int) -> Witness:
    """The witness that :func:`to_data` wrote.

    Args:
        data: what was read.
        most: elements that the arrays of all storages may have together.

    Raises:
        ValueError: it is not of that form, larger than that, or holds a number that no storage has.
    """
    whole = _fields(data, "arrays", "graphs", "calls", "narrowed")
    arrays = [_array(each) for each in _list(whole["arrays"])]
    room = most

    def storage(entry: object) -> Storage:
        nonlocal room
        places = _list(entry, 3)
        try:
            found = Storage(*(arrays[_index(place, len(arrays))] for place in places))
            room -= math.prod(np.broadcast_shapes(*found.shapes))
        except TooLargeError:
            room = -1
        if room < 0:
            raise ValueError("its storages are larger than any for such a model")
        _check_numbers(found)
        return found

    graphs = []
    for each in _list(whole["graphs"]):
        graph = _fields(each, "path", "storage", "removed", "names", "merged", optional=("regrouped",))
        stored = {name: storage(entry) for name, entry in _dict(graph["storage"]).items()}
        removed = {_index(index): (_text(x), _text(y)) for index, x, y in _rows(graph["removed"])}
        merged = {
            _index(root): Merged(_index(kept), tuple(map(_index, _list(members))))
            for root, kept, members in _rows(graph["merged"])
        }
        regrouped = tuple(_regrouped(each) for each in _list(graph.get("regrouped", [])))
        graphs.append(GraphWitness(_text(graph["path"]), stored, removed, _names(graph["names"]), merged, regrouped))
    calls: dict[Where, Call] = {}
    for each in _list(whole["calls"]):
        call = _fields(each, "where", "label", "names")
        where = tuple(tuple(map(_step, _list(step))) for step in _list(call["where"]))
        calls[where] = Call(_text(call["label"]), _names(call["names"]))
    narrowed = _fields(whole["narrowed"], "type", "carries")
    return Witness(tuple(graphs), calls, Narrowed(_index(narrowed["type"]), _names(narrowed["carries"])))


def _regrouped(entry: object) -> Regrouped:
    nodes, sums = _list(entry, 2)
    made = []
    for each in _list(sums):
        like, op, inputs, output = _list(each, 4)
        made.append(Sum(_step(like), _text(op), tuple(map(_text, _list(inputs))), _text(output)))
    return Regrouped(tuple(map(_index, _list(nodes))), tuple(made))


def _check_numbers(stored: Storage) -> None:
    """Every number is finite, and so is what encode and decode are made of, wherever they exist; none says nothing."""
    with np.errstate(all="ignore"):
        den, num, off = np.broadcast_arrays(stored.den, stored.num, stored.off)
        ratios = [part / by for by in (den, num) for part in (den, num, off)]
        defined = [by != 0 for by in (den, num) for _ in range(3)]
        good = all(np.isfinite(part).all() for part in (den, num, off)) and all(
            np.isfinite(ratio[where]).all() for ratio, where in zip(ratios, defined, strict=True)
        )
    if not good or ((den == 0) & (num == 0)).any():
        raise ValueError("a tensor is stored by numbers that say nothing")


def _array(entry: object) -> Array:
    found = _fields(entry, "shape", "data")
    shape = tuple(map(_index, _list(found["shape"])))
    try:
        values = np.frombuffer(base64.b64decode(_text(found["data"]), validate=True), "<f8")
    except binascii.Error:
        raise ValueError("an array is not base64") from None
    if len(shape) > MOST_AXES or math.prod(shape) != values.size:
        raise ValueError("an array is not of its shape")
    return values.astype(np.float64, copy=False).reshape(shape)


# ------------------------------------------------------------------------------------------------------- plain values


def _fields(entry: object, *names: str, optional: Iterable[str] = ()) -> Mapping[str, object]:
    found = _dict(entry)
    if set(found) - set(optional) != set(names):
        raise ValueError(f"{sorted(found)[:8]} stands where {sorted(names)} belong")
    return found


def _dict(entry: object) -> dict[str, object]:
    if not isinstance(entry, dict):
        raise ValueError(f"{_shown(entry)} stands where an object belongs")
    return entry


def _list(entry: object, length: int | None = None) -> list[object]:
    if not isinstance(entry, list) or length not in (None, len(entry)):
        raise ValueError(f"{_shown(entry)} stands where a list belongs")
    return entry


def _rows(entry: object) -> list[list[object]]:
    return [_list(row, 3) for row in _list(entry)]


def _names(entry: object) -> dict[str, str]:
    return {name: _text(new) for name, new in _dict(entry).items()}


def _text(entry: object) -> str:
    if not isinstance(entry, str):
        raise ValueError(f"{_shown(entry)} stands where a string belongs")
    return entry


def _step(entry: object) -> int:
    """A number, or -1 for none: in the path to a call where there is no list of graphs, for a node that is new."""
    if type(entry) is not int or not -1 <= entry < 1 << 31:
        raise ValueError(f"{_shown(entry)} stands where a number belongs")
    return entry


def _index(entry: object, end: int = 1 << 31) -> int:
    if type(entry) is not int or not 0 <= entry < end:
        raise ValueError(f"{_shown(entry)} stands where a number below {end} belongs")
    return entry


def _shown(entry: object) -> str:
    return repr(entry)[:40] if isinstance(entry, str | int | float | bool | None) else type(entry).__name__
