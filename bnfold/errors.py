"""What can go wrong, as exceptions whose text says what to do.

BnfoldError
├── UsageError          wrong options or arguments                        exit 2
├── ModelError          not a readable ONNX model, or one we cannot use   exit 1
├── OutputError         the result cannot be written                      exit 1
├── ClusterError        a Ray cluster is missing or does not answer       exit 1
├── ProviderError       an execution provider is missing or fell back     exit 1
└── NotEquivalentError  the optimized model is not the original           exit 3
"""


class BnfoldError(Exception):
    """Base of every error that bnfold raises on purpose; ``str(error)`` is one or two lines for a person."""

    exit_code = 1


class UsageError(BnfoldError):
    """Options or arguments that make no sense together."""

    exit_code = 2


class ModelError(BnfoldError):
    """The input is not a model that bnfold can read: truncated, not ONNX, external data missing, invalid graph."""


class OutputError(BnfoldError):
    """The output cannot be written: it exists, the folder is read-only, the disk is full."""


class ClusterError(BnfoldError):
    """Ray is not installed, or no cluster answers at the address."""


class ProviderError(BnfoldError):
    """An ONNX Runtime execution provider that was asked for is not available, or did not run the model."""


class NotEquivalentError(BnfoldError):
    """The two models differ by more than their own rounding noise."""

    exit_code = 3
