"""A Ray cluster: connecting to it, and streaming many samples through it. Only this module imports ray."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from bnfold.errors import BnfoldError, ClusterError
from bnfold.runtime import limit_threads

Result = TypeVar("Result")

AT_ONCE = 4
"""Samples that a worker takes at once."""

_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The ray module, connected to the cluster at this address.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ClusterError("--ray needs Ray; install it: pip install 'bnfold[ray]'") from None
    ended = signal.getsignal(signal.SIGTERM)
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    with contextlib.suppress(ValueError):  # not the main thread: then Ray has set no handler either
        signal.signal(signal.SIGTERM, ended)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quiet = {} if address.startswith("ray://") else {"log_to_driver": False}
            if address == "local":
                quiet["include_dashboard"] = False
            ray.init(address=address, logging_level="ERROR", **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        hint = "start one with 'ray start --head', or use --ray local"
        raise ClusterError(f"no Ray cluster answers at {address}: {why}\n{hint}") from None


def settle(place: str, release: str) -> str:
    """Make a worker's process like that of who asked: its folder, one core. Says what stands against it."""
    if version("bnfold") != release:
        return f"this node has bnfold {version('bnfold')}, not {release}; install the same on every node"
    try:
        os.chdir(place)
    except OSError:
        return f"the folder {place} is not on every node of the cluster; start where all share one"
    limit_threads(1)
    return ""


def here() -> tuple[str, str]:
    """What `settle` is told: this folder and this release."""
    return str(Path.cwd()), version("bnfold")


def stream(make: Callable[[], Callable[[int], Result]], count: int, address: str) -> Iterator[Result]:
    """What a function gives for 0 to `count`, in any order, by Ray Data: memory does not grow with `count`.

    Args:
        make: makes the function, once in every worker.
        count: how many calls.
        address: of the cluster.

    Raises:
        ClusterError: Ray is not installed, no cluster answers, or a worker cannot work.
        BnfoldError: what the function raised.
    """
    with connected(address) as ray:
        data = _data()
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        most = max(1, min(int(ray.cluster_resources().get("CPU", 1)), -(-count // AT_ONCE)))
        found = data.range(count, override_num_blocks=-(-count // AT_ONCE)).map_batches(
            _Streamed,
            fn_constructor_args=(make, here()),
            batch_size=AT_ONCE,
            num_cpus=1,
            compute=data.ActorPoolStrategy(min_size=1, max_size=most),
        )
        try:
            for row in found.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, BnfoldError):
                    raise result
                yield result
        except ray.exceptions.RayError as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            raise ClusterError(f"the cluster could not do it: {why}") from None


def _data() -> Any:
    try:
        from ray import data
    except ImportError:
        raise ClusterError("Ray Data is not installed; install it: pip install 'bnfold[ray]'") from None
    return data


class _Streamed:
    """A worker."""

    def __init__(self, make: Callable[[], Callable[[int], object]], place: tuple[str, str]) -> None:
        self._function: Callable[[int], object] | None = None
        self._problem: BnfoldError | None = None
        against = settle(*place)
        try:
            self._function = make() if not against else None
            self._problem = ClusterError(against) if against else None
        except BnfoldError as error:
            self._problem = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": [pickle.dumps(self._one(int(index))) for index in batch["id"]]}

    def _one(self, index: int) -> object:
        if self._function is None:
            return self._problem
        try:
            return self._function(index)
        except BnfoldError as error:
            return error
