"""The peak memory of one model, measured by a process that does nothing else: ``python -m bnfold.benchmark.child``.

stdin has one JSON object (see `Task`), stdout gets one: `base` and `peak`, bytes of resident memory before the model
was there and at most; `device`, bytes that it took on the GPU, or null; `trouble`, why something was not measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.runtime import CPU, Session, import_onnxruntime

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RUNS = 2


@dataclass(frozen=True)
class Task:
    """What to load, and what to run it on.

    `feeds` is an .npz with the arrays of `inputs`, in order; `session` what `Session` is told, `provider` and `options`
    among it.
    """

    model: str
    feeds: str
    inputs: Sequence[str]
    session: Mapping[str, Any]


def main() -> None:
    """Measure."""
    print(json.dumps(measure(Task(**json.load(sys.stdin)))))  # noqa: T201


def measure(task: Task) -> dict[str, Any]:
    """Load, run, and say what it took. Raises what the session raises, and `OSError` where Linux tells no memory."""
    import_onnxruntime()
    with np.load(task.feeds) as found:
        feeds = {name: found[f"arr_{index}"] for index, name in enumerate(task.inputs)}
    gpu = int(task.session["options"].get("device_id", 0))
    before, trouble = device_bytes(gpu) if task.session["provider"] != CPU else (None, "")
    base = resident("VmRSS")
    reset_peak()
    session = Session(Path(task.model), **task.session)
    runner = session.bound(feeds)
    for _ in range(_RUNS):
        runner.timed()
    after, _ = device_bytes(gpu) if before is not None else (None, "")
    device = None if before is None or after is None else after - before
    return {"base": base, "peak": resident("VmHWM"), "device": device, "trouble": trouble}


def resident(field: str) -> int:
    """Bytes of resident memory by the kernel's name: VmRSS now, VmHWM at most. Raises `OSError` elsewhere."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def reset_peak() -> None:
    """Forget the peak so far; where the kernel does not allow it, the peak of the imports stays a lower bound."""
    with contextlib.suppress(OSError):
        RESET.write_text("5")


def device_bytes(device: int) -> tuple[int | None, str]:
    """Bytes in use on a GPU, by whoever, as its driver counts them; or None, and why."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return None, f"the NVIDIA driver is not there: {error}"
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    for name, arguments in (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(handle), device)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), handle)),
        ("cuCtxSetCurrent", (context,)),
        ("cuMemGetInfo_v2", (ctypes.byref(free), ctypes.byref(total))),
    ):
        code = getattr(driver, name)(*arguments)
        if code:
            return None, f"{name} of the NVIDIA driver failed with code {code}"
    return total.value - free.value, ""


if __name__ == "__main__":
    main()
