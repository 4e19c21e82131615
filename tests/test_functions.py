"""Model-local functions: folds through their calls, and everything else about functions stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import inliner, numpy_helper

from bnfold import api
from bnfold.calls import Functions
from bnfold.certificate import certify
from bnfold.folding import Folder
from bnfold.graph import Model
from bnfold.inline import inline
from bnfold.oracle import Oracle
from bnfold.patch import witness_of
from bnfold.source import read
from bnfold.witness import Witness
from bnfold.write import folded
from tests.law import feeds
from tests.text import build, ops, optimize

BN = "BatchNormalization(a, s, b, m, v)"
CONV = "a = Conv <pads=[1,1,1,1]> (x, w)"

NORM = '<domain: "f", opset_import: ["" : 18]> norm (a, s, b, m, v) => (o) { o = BatchNormalization(a, s, b, m, v) }'
RELU = '<domain: "f", opset_import: ["" : 18]> act (a) => (o) { o = Relu(a) }'
CONSTANTS = """<domain: "f", opset_import: ["" : 18]> norm (a) => (o) {
    s = Constant <value_floats=[0.5, -2.0, 1.5, 3.0]> ()
    b = Constant <value_floats=[1.0, 2.0, -3.0, 0.5]> ()
    v = Constant <value_floats=[1.0, 0.3, 2.0, 0.01]> ()
    [norm] o = BatchNormalization (a, s, b, b, v)
}"""


FOLDS = {
    "a BN that is a function": (f"{CONV} y = f.norm(a, s, b, m, v)", [NORM], ["Conv"]),
    "its parameters are constants of the function": (f"{CONV} [n1] y = f.norm(a)", [CONSTANTS], ["Conv"]),
    "a function holds the Conv": (
        f"[c] a = f.conv(x, w) y = {BN}",
        ['<domain: "f", opset_import: ["" : 18]> conv (a, w) => (o) { o = Conv <pads=[1,1,1,1]> (a, w) }'],
        ["Conv"],
    ),
    "branches in a function": (
        "[block] y = f.block(x, w, w1)",
        [
            """<domain: "f", opset_import: ["" : 18]> block (a, w, k) => (o) {
                c = Conv <pads=[1,1,1,1]> (a, w)
                d = Conv (a, k)
                o = Add (c, d)
            }"""
        ],
        ["Conv"],
    ),
    "a branch that is a function": (
        f"{CONV} [c] d = f.conv(x, w1) y = Add(a, d)",
        ['<domain: "f", opset_import: ["" : 18]> conv (a, w) => (o) { o = Conv (a, w) }'],
        ["Conv"],
    ),
    "an activation stands between": (
        "a = Abs(x) p = Abs(s) z = Sub(b, b) q = BatchNormalization(a, p, z, z, v) r = f.act(q) y = Conv(r, w1)",
        [RELU],
        ["Abs", "Relu", "Conv"],
    ),
    "a function calls functions": (
        f"{CONV} [outer] y = f.block(a, s, b, m, v)",
        [
            """<domain: "f", opset_import: ["" : 18, "f" : 1]> block (a, s, b, m, v) => (o) {
                [inner] c = f.norm (a, s, b, m, v)
                [out] o = f.act (c)
            }""",
            NORM,
            RELU,
        ],
        ["Conv", "act"],
    ),
    "an attribute is a parameter": (
        f"{CONV} c = f.norm <epsilon=0.5> (a, s, b, m, v) y = f.norm (c, s, b, m, v)",
        [
            """<domain: "f", opset_import: ["" : 18]> norm <epsilon: float = 0.25> (a, s, b, m, v) => (o) {
                o = BatchNormalization <epsilon: float = @epsilon> (a, s, b, m, v)
            }"""
        ],
        ["Conv"],
    ),
    "an attribute has no value": (
        f"{CONV} y = f.norm (a, s, b, m, v)",
        [
            """<domain: "f", opset_import: ["" : 18]> norm <epsilon> (a, s, b, m, v) => (o) {
                o = BatchNormalization <epsilon: float = @epsilon> (a, s, b, m, v)
            }"""
        ],
        ["Conv"],
    ),
    "an optional input is left out": (
        f"a = f.conv (x, w) y = {BN}",
        ['<domain: "f", opset_import: ["" : 18]> conv (a, w, c) => (o) { o = Conv <pads=[1,1,1,1]> (a, w, c) }'],
        ["Conv"],
    ),
    "an output is left out": (
        f"{CONV} y = f.norm(a, s, b, m, v)",
        [NORM.replace("(o) {", "(o, unused) { unused = Shape (a)")],
        ["Conv", "Shape"],
    ),
    "a call in a body": (
        f"""go = Constant <value_int=1> () k = Cast <to=9> (go) {CONV} y = If (k) <
            then_branch = t () => (float[A,B,C,D] p) {{ c = Conv(a, w1) p = f.norm(c, s, b, m, v) }},
            else_branch = e () => (float[A,B,C,D] q) {{ q = Identity(a) }}
        >""",
        [NORM],
        ["Conv", "Constant", "Cast", "If", "Conv", "Identity"],
    ),
    "a body in a function": (
        f"{CONV} g = f.norm(a, s, b, m, v) [pick] y = f.pick(g, w1, s)",
        [
            NORM,
            """<domain: "f", opset_import: ["" : 18]> pick (a, w, s) => (o) {
                k = Constant <value_int=1> ()
                go = Cast <to=9> (k)
                o = If (go) <
                    then_branch = t () => (p) { t = Constant <value_float=2.0> () c = Conv(a, w) p = Mul(c, t) },
                    else_branch = e () => (q) { q = Identity(a) }
                >
            }""",
        ],
        ["Conv", "Constant", "Cast", "If", "Conv", "Identity"],
    ),
    "written in another opset": (f"{CONV} y = f.norm(a, s, b, m, v)", [NORM.replace("18", "15")], ["Conv"]),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds_through_calls(name: str) -> None:
    graph, functions, left = FOLDS[name]
    # ONNX Runtime wants every output of a call, and below 1.28 it ends the process where one is left out.
    result = optimize(build(graph, *functions), runs=name != "an output is left out")
    assert result.proto is not None
    assert sorted(ops(result.proto)) == sorted(left)


def test_labels_say_which_call() -> None:
    graph = f"{CONV} [one] c = f.norm(a) d = Relu(c) [two] y = f.norm(d)"
    result = optimize(build(graph, CONSTANTS), left=1)
    assert [(affine.node, affine.status) for affine in result.affines] == [
        ("one/norm", "folded"),
        ("two/norm", "kept"),
    ]
    assert result.affines[1].reasons[0].code != "inside-function"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"keep": ["one/norm"]}, ["kept", "folded"]),
        ({"keep": ["*/norm"]}, ["kept", "kept"]),
        ({"only": ["two/*"]}, ["kept", "folded"]),
        ({"keep": ["norm"]}, ["folded", "folded"]),
    ],
)
def test_labels_of_calls_can_be_asked_to_stay(options: dict[str, list[str]], status: list[str]) -> None:
    model = build(f"{CONV} [one] c = f.norm(a) [two] y = f.norm(c)", CONSTANTS)
    result = api.explain(model, keep=options.get("keep", ()), only=options.get("only", ()))
    assert [affine.status for affine in result.affines] == status
    assert bool(result.warnings) == (options == {"keep": ["norm"]})


def test_only_the_calls_that_a_fold_needs_are_replaced() -> None:
    graph = f"{CONV} [one] c = f.norm(a) d = Tanh(c) [two] e = f.norm(d) g = f.act(e) y = f.other(g)"
    other = RELU.replace("act", "other").replace("Relu", "Tanh")
    unused = RELU.replace("act", "unused")
    model = build(graph, CONSTANTS, RELU, other, unused)
    result = optimize(model, left=1)
    assert result.proto is not None
    assert ops(result.proto) == ["Conv", "Tanh", "norm", "act", "other"]
    assert result.batchnorm.before == 2
    old, new = ([f.SerializeToString() for f in one.functions] for one in (model, result.proto))
    assert old == new, "a function that is called, or never was, stays"


def test_a_call_that_computes_a_parameter_is_replaced_alone() -> None:
    square = '<domain: "f", opset_import: ["" : 18]> square (a) => (o) { o = Mul(a, a) }'
    graph = f"{CONV} v2 = f.square(v) c = BatchNormalization(a, s, b, m, v2) y = f.act(c)"
    result = optimize(build(graph, square, RELU))
    assert result.proto is not None
    assert ops(result.proto) == ["Conv", "act"]


def test_a_function_goes_with_its_last_call() -> None:
    unused = CONSTANTS.replace("norm (a)", "unused (a)")
    result = optimize(build(f"{CONV} y = f.norm(a)", CONSTANTS, unused))
    assert result.proto is not None
    assert [function.name for function in result.proto.functions] == ["unused"]
    assert result.batchnorm.before == 1, "an unused function runs nothing"


def test_overloads_are_told_apart() -> None:
    model = build(f"{CONV} c = f.norm(a, s, b, m, v) y = f.norm(c, s, b, m, v)", NORM, NORM)
    model.functions[1].overload = "second"
    del model.functions[1].node[:]
    model.functions[1].node.append(onnx.helper.make_node("Mul", ["a", "k"], ["o"], name="mul"))
    model.functions[1].node.insert(
        0, onnx.helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.full((4, 1, 1), -3.0)))
    )
    model.graph.node[-1].overload = "second"
    before = model.SerializeToString()
    given = Model(read(model))
    found = Folder(given).solve()
    assert [(o.node.op, o.folded) for o in found.outcomes] == [("BatchNormalization", True), ("Mul", True)]
    made = folded(found.rewrite)
    assert ops(made) == ["Conv"] and not made.functions
    assert certify(given, Model(read(made)), witness_of(found.rewrite)).ok
    assert model.SerializeToString() == before


def test_nothing_folds_nothing_changes(tmp_path: Path) -> None:
    model = build("a = Tanh(x) y = f.norm(a)", CONSTANTS, RELU)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    result = api.optimize(path)
    assert result.output is not None and result.output.read_bytes() == path.read_bytes()
    assert [affine.status for affine in result.affines] == ["kept"]


REFUSED = {
    "another opset in which the operator differs": (
        NORM.replace("18", "13"),
        "written in opset 13",
    ),
    "a body that returns what it was given": (
        """<domain: "f", opset_import: ["" : 18]> norm (a, s, b, m, v) => (o) {
            c = BatchNormalization(a, s, b, m, v)
            n = Constant <value_int=1> ()
            t = Cast <to=9> (n)
            o = Loop (n, t, c) <body = l (i, go, d) => (go, d2) { d2 = Relu(d) }>
        }""",
        "returns what it did not compute",
    ),
    "a function that passes its input on": (
        NORM.replace("(o)", "(o, s)"),
        "at once an output",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_cannot_be_replaced_say_why(name: str) -> None:
    function, why = REFUSED[name]
    model = build(f"{CONV} [call] y = f.norm(a, s, b, m, v)", function)
    result = api.optimize(model, verify=False)
    node = "call/c" if name.startswith("a body") else "call/o"
    assert [(affine.node, affine.status) for affine in result.affines] == [(node, "kept")]
    assert result.affines[0].reasons[0].code == "inside-function"
    assert why in result.affines[0].reasons[0].text
    assert result.proto is not None and result.proto.SerializeToString() == model.SerializeToString()


def test_functions_that_call_themselves_or_grow_without_bound_are_left_alone() -> None:
    chain = [
        f'<domain: "f", opset_import: ["f" : 1]> g{i} (a) => (o) {{ b = f.g{i + 1}(a) o = f.g{i + 1}(b) }}'
        for i in range(30)
    ]
    model = build(f"{CONV} c = f.norm(a) y = f.g0(c)", *chain, RELU.replace("act", "g30"), CONSTANTS)
    assert Functions(model).count() == 1 + 4 + 2**30
    assert not inline(model, Functions(model)).calls
    assert "more than" in api.explain(model).affines[0].reasons[0].text
    loop = build(f"{CONV} y = f.act(a)", RELU.replace("Relu(a)", "f.act(a)").replace('"" : 18', '"f" : 1'))
    assert not inline(loop, Functions(loop)).calls


@pytest.mark.parametrize("name", FOLDS)
def test_inlining_changes_no_value(name: str) -> None:
    model = build(FOLDS[name][0], *FOLDS[name][1])
    own = inline(model, Functions(model)).proto
    onnx.checker.check_model(own, full_check=True)
    values = feeds(model)
    np.testing.assert_array_equal(Oracle(own).run(values, ["y"])["y"], Oracle(model).run(values, ["y"])["y"])
    if name != "written in another opset":  # onnx converts such a function, or fails to
        assert ops(own) == ops(inliner.inline_local_functions(model))


def test_metadata_of_the_functions_nodes_stays() -> None:
    model = build(f"{CONV} [call] c = f.block(a) y = f.act(c)", CONSTANTS.replace("norm (a)", "block (a)"), RELU)
    node = next(node for node in model.functions[0].node if node.name == "norm")
    node.metadata_props.add(key="from", value="the module")
    own = inline(model, Functions(model)).proto
    (made,) = (node for node in own.graph.node if node.name == "call/norm")
    assert [(entry.key, entry.value) for entry in made.metadata_props] == [("from", "the module")]
    assert made.input[0] == "a" and made.input[1] == "call/s" and list(made.output) == ["c"]


def test_fresh_names_meet_no_other() -> None:
    graph = f"call__s = Abs(x) {CONV} [call] c = f.norm(a) d = Add(c, call__s) [call] y = f.norm(d)"
    model = build(graph, CONSTANTS)
    model.graph.node[0].output[0] = "call/s"
    model.graph.node[3].input[1] = "call/s"
    own = inline(model, Functions(model)).proto
    made = [name for node in own.graph.node for name in node.output]
    assert len(made) == len(set(made)) and {"call/s", "call/s.2", "call/s.3"} <= set(made)


def test_external_data_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(f"{CONV} c = f.norm(a, s, b, m, v) y = f.big(c, w)", NORM, RELU.replace("act (a)", "big (a, w)"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    given = Model(read(path))
    (tmp_path / "model.data").unlink()
    assert len(inline(given.proto, Functions(given.proto)).calls) == 2


def test_external_data_and_functions(tmp_path: Path) -> None:
    model = build(f"{CONV} c = f.norm(a, s, b, m, v) y = f.big(c, w)", NORM, RELU.replace("act (a)", "big (a, w)"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    result = api.optimize(path)
    assert result.batchnorm.after == 0 and result.status == "verified" and result.output is not None
    made = onnx.load(result.output)
    assert ops(made) == ["Conv", "big"] and [function.name for function in made.functions] == ["big"]


# ------------------------------------------------------------------------------------------------- the certificate


def proved() -> tuple[onnx.ModelProto, onnx.ModelProto, Witness]:
    model = build(f"{CONV} [call] c = f.norm(a) y = f.act(c)", CONSTANTS, RELU)
    given = Model(read(model))
    rewrite = Folder(given).solve().rewrite
    made, witness = folded(rewrite), witness_of(rewrite)
    assert certify(given, Model(read(made)), witness).ok
    return model, made, witness


def failure(model: onnx.ModelProto, made: onnx.ModelProto, witness: Witness) -> str:
    certificate = certify(Model(read(model)), Model(read(made)), witness)
    assert not certificate.ok
    return str(certificate.failures[0])


def test_the_certificate_sees_a_changed_function() -> None:
    model, made, witness = proved()
    made.functions[0].node[0].op_type = "Tanh"
    assert "functions changed" in failure(model, made, witness)


def test_the_certificate_sees_a_dropped_function() -> None:
    model, made, witness = proved()
    del made.functions[:]
    assert "functions changed" in failure(model, made, witness)


def test_the_certificate_inlines_by_itself() -> None:
    model, made, witness = proved()
    node = next(node for node in model.functions[0].node if node.name == "norm")
    node.attribute.append(onnx.helper.make_attribute("epsilon", 0.5))
    assert failure(model, made, witness)


def test_the_certificate_sees_wrong_names() -> None:
    model, made, witness = proved()
    ((where, call),) = witness.calls.items()
    for names in (dict(call.names) | {"s": "a"}, dict(call.names) | {"s": call.names["v"]}):
        assert "is taken" in failure(model, made, replace(witness, calls={where: replace(call, names=names)}))
    fewer = {inner: name for inner, name in call.names.items() if inner != "s"}
    assert "no name for 's'" in failure(model, made, replace(witness, calls={where: replace(call, names=fewer)}))


def test_the_certificate_sees_calls_that_are_not_there() -> None:
    model, made, witness = proved()
    ((_, call),) = witness.calls.items()
    assert "does not have" in failure(model, made, replace(witness, calls={((7,),): call}))
    assert "calls a function" in failure(model, made, replace(witness, calls={((0,),): call}))
    assert failure(model, made, replace(witness, calls={}))
