"""bnfold removes BatchNormalization from ONNX models and proves that nothing changed.

>>> import bnfold
>>> result = bnfold.optimize("model.onnx")
>>> print(result.batchnorm.after, result.status)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.api import Explained, Optimized, bench, explain, optimize, verify
    from bnfold.deployment import Deployed, deploy
    from bnfold.errors import BnfoldError

__all__ = ["BnfoldError", "Deployed", "Explained", "Optimized", "bench", "deploy", "explain", "optimize", "verify"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `bnfold --help` imports neither numpy nor onnx.
    if name == "BnfoldError":
        from bnfold.errors import BnfoldError

        return BnfoldError
    if name in ("Deployed", "deploy"):
        from bnfold import deployment

        return getattr(deployment, name)
    if name in __all__:
        from bnfold import api

        return getattr(api, name)
    raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
