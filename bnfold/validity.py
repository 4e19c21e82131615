"""Whose fault a failure is: a model that breaks ONNX's rules is told so; on one that keeps them it is bnfold's.

Most models are never asked. bnfold reads what it can use, whatever else a file holds; only where something went wrong
does it look for the reason in the file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import onnx

from bnfold import skeleton
from bnfold.errors import BnfoldError, ModelError, NotEquivalentError
from bnfold.source import ModelLike, Source, read

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
            _blame(read(model), error)
            raise
        except (BnfoldError, MemoryError, OSError):
            raise
        except Exception as error:
            _blame(read(model), error)
            raise

    return told


def _blame(source: Source, error: Exception) -> None:
    problem = problem_of(source.proto)
    if problem:
        raise ModelError(f"{source.label} is not a valid ONNX model: {problem}") from error


def problem_of(model: onnx.ModelProto) -> str:
    """What ONNX's own checker and its strict shape inference have against a model; '' for nothing."""
    try:
        bare = skeleton.without_weights(model)
        onnx.checker.check_model(bare)
        onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    except Exception as error:  # noqa: BLE001 - C++ code raises what it likes, protobuf what is no text
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0][:300] if lines else type(error).__name__
    return ""
