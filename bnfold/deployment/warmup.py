"""Requests that a server runs before it says that it is ready, from the inputs that a verification would feed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.deployment.interface import Interface
from bnfold.kernels.base import Array
from bnfold.samples import Feeds

FOLDER = "warmup"
"""Where Triton looks for the data, in the model's folder."""


@dataclass(frozen=True)
class Datum:
    """One input of a request: its sizes without the batch, and the file with its bytes in row-major order."""

    name: str
    type: str
    dims: tuple[int, ...]
    file: str
    data: bytes


@dataclass(frozen=True)
class Request:
    """One request; the server repeats the row `batch` times."""

    name: str
    batch: int
    inputs: tuple[Datum, ...]


def requests(interface: Interface, feeds: Sequence[Feeds], max_batch: int) -> tuple[Request, ...]:
    """A request of one row and one of the largest batch; or the samples as they are, where the server does not batch.

    Files are named by what they hold, so that several versions of a model share them and none is overwritten.
    """
    if not feeds:
        return ()
    if not max_batch:
        return tuple(Request(f"sample-{number}", 1, _data(interface, each)) for number, each in enumerate(feeds, 1))
    row = _data(interface, {name: array[0] for name, array in feeds[0].items()})
    batches = [1] if max_batch == 1 else [1, max_batch]
    return tuple(Request(f"batch-{batch}", batch, row) for batch in batches)


def _data(interface: Interface, feeds: Feeds) -> tuple[Datum, ...]:
    """Of the inputs; one without axes has one axis of size 1, as Triton wants it."""
    found = []
    for tensor in interface.inputs:
        array = np.asarray(feeds[tensor.name])
        data = _bytes(array)
        file = f"{hashlib.sha256(data).hexdigest()[:16]}.raw"
        found.append(Datum(tensor.name, tensor.type, array.shape or (1,), file, data))
    return tuple(found)


def _bytes(array: Array) -> bytes:
    little = array if array.dtype.byteorder != ">" else array.byteswap()
    return np.ascontiguousarray(little).tobytes()
