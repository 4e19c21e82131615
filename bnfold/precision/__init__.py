"""Fold and convert in one plan: float16 or bfloat16, each constant rounded once, from float64.

`wishes` is what is asked, `types` says what ONNX allows, `values` what a constant loses, `kept` what stays in float32
and why, `skeleton` what ONNX Runtime's converter decides, `convert` puts it into the model.
"""

from bnfold.precision.convert import Converted, converted
from bnfold.precision.types import LONG, type_of
from bnfold.precision.wishes import Kept, Wanted, peaks

__all__ = ["LONG", "Converted", "Kept", "Wanted", "converted", "peaks", "type_of"]
