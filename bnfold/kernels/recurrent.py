"""RNN, GRU and LSTM, step by step, in both directions and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bnfold.kernels.activation import sigmoid
from bnfold.kernels.base import Array, Call, kernel

Function = Callable[[Array], Array]
Step = Callable[[Array, Array, Array, tuple[Array, ...]], tuple[Array, ...]]
"""(x W + Wb, R, Rb, states) -> new states, the hidden one first."""

_PLAIN: dict[str, Function] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(0, x),
}

_SHAPED: dict[str, tuple[tuple[float | None, float | None], Callable[[Array, float, float], Array]]] = {
    "affine": ((1.0, 0.0), lambda x, alpha, beta: alpha * x + beta),
    "leakyrelu": ((0.01, None), lambda x, alpha, _: np.where(x >= 0, x, alpha * x)),
    "thresholdedrelu": ((1.0, None), lambda x, alpha, _: np.where(x > alpha, x, 0.0)),
    "elu": ((1.0, None), lambda x, alpha, _: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0)))),
    "hardsigmoid": ((0.2, 0.5), lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1)),
    "scaledtanh": ((1.0, 1.0), lambda x, alpha, beta: alpha * np.tanh(beta * x)),
}
"""Defaults of alpha and beta, None where there is no such number; and the function."""


def _functions(call: Call, default: list[str], directions: int) -> list[list[Function]]:
    """The activations of each direction, with `clip` on what gates read (not on a cell, as in ONNX Runtime)."""
    names = [str(name).lower() for name in call.attributes.get("activations") or default * directions]
    if len(names) != len(default) * directions:
        raise call.refuse(f"{len(names)} activations for {directions} directions")
    numbers = iter(call.get("activation_alpha") or ()), iter(call.get("activation_beta") or ())
    bound = float(call.get("clip") or np.inf)
    bounds = [bound, bound, np.inf][: len(default)] * directions
    found = [_function(call, name, numbers, limit) for name, limit in zip(names, bounds, strict=True)]
    return [found[i : i + len(default)] for i in range(0, len(found), len(default))]


def _function(call: Call, name: str, numbers: tuple[Iterator[float], Iterator[float]], bound: float) -> Function:
    plain = _PLAIN.get(name)
    if plain is not None:
        return lambda x: plain(np.clip(x, -bound, bound))
    if name not in _SHAPED:
        raise call.refuse(f"activation {name}")
    defaults, shaped = _SHAPED[name]
    alpha, beta = (0.0 if d is None else float(next(given, d)) for d, given in zip(defaults, numbers, strict=True))
    return lambda x: shaped(np.clip(x, -bound, bound), alpha, beta)


def _padded(more: tuple[Array | None, ...], count: int) -> tuple[Array | None, ...]:
    """The optional inputs: B, sequence_lens, initial_h, and of an LSTM initial_c and P."""
    return (*more, *(None,) * count)[:count]


def _run(
    call: Call,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None,
    lengths: Array | None,
    initial: tuple[Array | None, ...],
    steps: Callable[[int], Step],
) -> tuple[Array, ...]:
    """All steps of all directions: Y, then the last states."""
    batch_first = bool(call.get("layout", 0))
    if batch_first:
        x, initial = np.swapaxes(x, 0, 1), tuple(s if s is None else np.swapaxes(s, 0, 1) for s in initial)
    directions, hidden = r.shape[0], r.shape[2]
    b = np.zeros((directions, 2 * w.shape[1])) if b is None else b
    lengths = np.full(x.shape[1], x.shape[0]) if lengths is None else lengths
    y = np.zeros((x.shape[0], directions, x.shape[1], hidden))
    last: list[tuple[Array, ...]] = []
    for d in range(directions):
        backwards = d == 1 or call.get("direction", "forward") == "reverse"
        states = tuple(np.zeros((x.shape[1], hidden)) if state is None else state[d] for state in initial)
        entering = x @ w[d].T + b[d, : w.shape[1]]
        step = steps(d)
        for t in range(x.shape[0])[:: -1 if backwards else 1]:
            active = (t < lengths)[:, None]
            moved = step(entering[t], r[d], b[d, w.shape[1] :], states)
            states = tuple(np.where(active, new, old) for new, old in zip(moved, states, strict=True))
            y[t, d] = np.where(active, states[0], 0.0)
        last.append(states)
    ends = tuple(np.stack(parts) for parts in zip(*last, strict=True))
    if batch_first:
        y, ends = y.transpose(2, 0, 1, 3), tuple(np.swapaxes(end, 0, 1) for end in ends)
    return (y, *ends)[: len(call.outputs)]


@kernel("RNN")
def rnn(call: Call, x: Array, w: Array, r: Array, *more: Array | None) -> tuple[Array, ...]:
    """H = f(X W + H R + Wb + Rb)."""
    b, lengths, initial = _padded(more, 3)
    functions = _functions(call, ["Tanh"], r.shape[0])

    def steps(d: int) -> Step:
        return lambda entering, recurrence, bias, states: (functions[d][0](entering + states[0] @ recurrence.T + bias),)

    return _run(call, x, w, r, b, lengths, (initial,), steps)


@kernel("GRU")
def gru(call: Call, x: Array, w: Array, r: Array, *more: Array | None) -> tuple[Array, ...]:
    """Gates z, r, h:  H = (1 - z) g(X W + (r H) R + Rb + Wb) + z H;  r (H R + Rb) where linear_before_reset."""
    b, lengths, initial = _padded(more, 3)
    functions, n = _functions(call, ["Sigmoid", "Tanh"], r.shape[0]), r.shape[2]
    linear = bool(call.get("linear_before_reset", 0))

    def steps(d: int) -> Step:
        f, g = functions[d]

        def step(entering: Array, recurrence: Array, bias: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
            h = states[0]
            gates = f(entering[:, : 2 * n] + h @ recurrence[: 2 * n].T + bias[: 2 * n])
            z, reset = gates[:, :n], gates[:, n:]
            own, shift = recurrence[2 * n :].T, bias[2 * n :]
            fed_back = reset * (h @ own + shift) if linear else (reset * h) @ own + shift
            return ((1 - z) * g(entering[:, 2 * n :] + fed_back) + z * h,)

        return step

    return _run(call, x, w, r, b, lengths, (initial,), steps)


@kernel("LSTM")
def lstm(call: Call, x: Array, w: Array, r: Array, *more: Array | None) -> tuple[Array, ...]:
    """Gates i, o, f, c:  C = f C + i c,  H = o h(C);  peepholes let i and f see the old C, o the new one."""
    b, lengths, initial, initial_c, peepholes = _padded(more, 5)
    functions, n = _functions(call, ["Sigmoid", "Tanh", "Tanh"], r.shape[0]), r.shape[2]
    coupled = bool(call.get("input_forget", 0))

    def steps(d: int) -> Step:
        f, g, last = functions[d]
        p_i, p_o, p_f = np.zeros((3, n)) if peepholes is None else peepholes[d].reshape(3, n)

        def step(entering: Array, recurrence: Array, bias: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
            h, c = states
            i, o, forget, new = np.split(entering + h @ recurrence.T + bias, 4, axis=1)
            i = f(i + p_i * c)
            forget = 1 - i if coupled else f(forget + p_f * c)
            c = forget * c + i * g(new)
            return f(o + p_o * c) * last(c), c

        return step

    return _run(call, x, w, r, b, lengths, (initial, initial_c), steps)
