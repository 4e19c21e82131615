"""If, Loop and Scan: their bodies run through the function that the oracle hands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from bnfold.kernels.base import Call

RunGraph = Callable[[onnx.GraphProto, Sequence[Any]], list[Any]]
"""Runs a subgraph on its inputs, in order, and returns its outputs, in order."""


def run_if(call: Call, run: RunGraph, condition: Any) -> tuple[Any, ...]:
    """One of two graphs."""
    branch = "then_branch" if bool(np.asarray(condition).ravel()[0]) else "else_branch"
    return tuple(run(call.get(branch), ()))


def run_loop(call: Call, run: RunGraph, limit: Any, condition: Any, *carried: Any) -> tuple[Any, ...]:
    """A body until the condition fails or the trip count is reached; what it scans out is stacked."""
    body: onnx.GraphProto = call.get("body")
    trips = None if limit is None else int(np.asarray(limit).ravel()[0])
    going = True if condition is None else bool(np.asarray(condition).ravel()[0])
    state = list(carried)
    scanned: list[list[Any]] = [[] for _ in range(len(body.output) - 1 - len(state))]
    turn = 0
    while going and (trips is None or turn < trips):
        results = run(body, [np.array(turn, np.int64), np.array(going), *state])
        going = bool(np.asarray(results[0]).ravel()[0])
        state = results[1 : 1 + len(state)]
        for stack, value in zip(scanned, results[1 + len(state) :], strict=True):
            stack.append(value)
        turn += 1
    if turn == 0 and scanned:
        raise call.refuse("a loop that never runs and scans out has no known shape")
    return (*state, *(np.stack(stack) for stack in scanned))


def run_scan(call: Call, run: RunGraph, *inputs: Any) -> tuple[Any, ...]:
    """A body over slices of the scanned inputs (opset 9 and newer)."""
    if call.version < 9:
        raise call.refuse("the batched Scan of opset 8")
    body: onnx.GraphProto = call.get("body")
    count = int(call.get("num_scan_inputs"))
    state, sequences = list(inputs[: len(inputs) - count]), inputs[len(inputs) - count :]
    axes = call.get("scan_input_axes") or [0] * count
    backwards = call.get("scan_input_directions") or [0] * count
    outputs = len(body.output) - len(state)
    out_axes = call.get("scan_output_axes") or [0] * outputs
    out_backwards = call.get("scan_output_directions") or [0] * outputs
    slices = [np.moveaxis(sequence, axis, 0) for sequence, axis in zip(sequences, axes, strict=True)]
    slices = [value[::-1] if flip else value for value, flip in zip(slices, backwards, strict=True)]
    scanned: list[list[Any]] = [[] for _ in range(outputs)]
    for turn in range(len(slices[0])):
        results = run(body, [*state, *(value[turn] for value in slices)])
        state = results[: len(state)]
        for stack, value in zip(scanned, results[len(state) :], strict=True):
            stack.append(value)
    if outputs and not scanned[0]:
        raise call.refuse("an empty sequence")
    stacked = []
    for stack, axis, flip in zip(scanned, out_axes, out_backwards, strict=True):
        whole = np.stack(stack[::-1] if flip else stack)
        stacked.append(np.moveaxis(whole, 0, axis))
    return (*state, *stacked)
