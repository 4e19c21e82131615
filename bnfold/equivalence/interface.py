"""Whether two models promise the same: names, order, types and sizes of their inputs and outputs."""

from __future__ import annotations

import onnx

from bnfold.samples import real_inputs


def interface_problems(original: onnx.ModelProto, optimized: onnx.ModelProto) -> list[str]:
    """Where names, order, element types or fixed sizes of inputs and outputs differ; declared sizes may be missing."""
    problems = []
    for what, before, after in (
        ("inputs", real_inputs(original), real_inputs(optimized)),
        ("outputs", list(original.graph.output), list(optimized.graph.output)),
    ):
        names = [value.name for value in before], [value.name for value in after]
        if names[0] != names[1]:
            problems.append(f"the {what} are {', '.join(names[1]) or 'none'}; the original's {', '.join(names[0])}")
            continue
        problems += [
            f"{what[:-1]} '{one.name}' is declared {_declared(two)}; in the original {_declared(one)}"
            for one, two in zip(before, after, strict=True)
            if not _same_type(one.type, two.type)
        ]
    return problems


def _same_type(one: onnx.TypeProto, two: onnx.TypeProto) -> bool:
    if one.WhichOneof("value") != two.WhichOneof("value"):
        return False
    if not one.HasField("tensor_type"):
        return one == two
    before, after = one.tensor_type, two.tensor_type
    if before.elem_type != after.elem_type:
        return False
    if not (before.HasField("shape") and after.HasField("shape")):
        return True
    dims = before.shape.dim, after.shape.dim
    return len(dims[0]) == len(dims[1]) and all(
        a.dim_value == b.dim_value or not (a.HasField("dim_value") and b.HasField("dim_value"))
        for a, b in zip(*dims, strict=True)
    )


def _declared(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [str(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param) or "?" for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{','.join(dims)}]"
