"""Whose fault a failure is: a model that breaks ONNX's rules is told so; on one that keeps them it is bnfold's.

Most models are never asked. bnfold reads what it can use, whatever else a file holds; only where something went wrong
does it look for the reason in the file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import onnx
from google.protobuf.message import EncodeError

from bnfold import inference, skeleton
from bnfold.errors import BnfoldError, ModelError, NotEquivalentError
from bnfold.operand_shapes import odd_operand
from bnfold.protos import every_node
from bnfold.source import ModelLike, Source, read_lean

Given = ParamSpec("Given")
Result = TypeVar("Result")


def blames_the_model(
    function: Callable[Concatenate[ModelLike, Given], Result],
) -> Callable[Concatenate[ModelLike, Given], Result]:
    """A function whose first argument is a model: where it breaks on one that is not valid, it raises `ModelError`."""

    @functools.wraps(function)
    def told(model: ModelLike, /, *rest: Given.args, **options: Given.kwargs) -> Result:
        try:
            return function(model, *rest, **options)
        except NotEquivalentError as error:
            check_valid(read_lean(model), error)
            raise
        except (BnfoldError, MemoryError, OSError):
            raise
        except EncodeError as error:
            raise ModelError("the model is larger than 2 GB: give the path of its file") from error
        except Exception as error:
            check_valid(read_lean(model), error)
            raise

    return told


def check_valid(source: Source, cause: Exception | None = None) -> None:
    """See that a model on which something went wrong is valid.

    Raises:
        ModelError: it is not, which explains what went wrong.
    """
    problem = problem_of(source.proto)
    if problem:
        raise ModelError(f"{source.label} is not a valid ONNX model: {problem}") from cause


def _broken_rule(model: onnx.ModelProto) -> str:
    """A node that ONNX's inference could not be shown, in words; '' for none."""
    for node in every_node(node for part in (model.graph, *model.functions) for node in part.node):
        if skeleton.breaks_a_rule(node):
            return f"the node '{node.name or ', '.join(node.output)}' breaks the rules of its operator, {node.op_type}"
    return ""


def problem_of(model: onnx.ModelProto) -> str:
    """What ONNX's own checker, its strict shape inference and `odd_operand` have against a model; '' for nothing."""
    try:
        bare = skeleton.without_weights(model)
        onnx.checker.check_model(bare)
        return odd_operand(inference.checked(bare)) or _broken_rule(model)
    except Exception as error:  # noqa: BLE001 - C++ code raises what it likes, protobuf what is no text
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0][:300] if lines else type(error).__name__
