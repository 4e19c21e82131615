"""Triton's published schema of a model's configuration, as tritonclient carries it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from typing import Any

from google.protobuf import text_format


def model_config() -> Any | None:
    """The module `tritonclient.grpc.model_config_pb2`, without the gRPC around it; None without tritonclient."""
    name = "tritonclient_model_config_pb2"
    if name in sys.modules:
        return sys.modules[name]
    try:
        package = importlib.metadata.distribution("tritonclient")
    except importlib.metadata.PackageNotFoundError:
        return None
    spec = importlib.util.spec_from_file_location(
        name, str(package.locate_file("tritonclient/grpc/model_config_pb2.py"))
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def parsed(text: str) -> Any:
    """A `ModelConfig`. Raises `google.protobuf.text_format.ParseError` for what the schema does not know."""
    module = model_config()
    assert module is not None, "tritonclient is not installed"
    return text_format.Parse(text, module.ModelConfig())
