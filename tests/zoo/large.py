"""Fold a model with gigabytes of external data, and say how much memory that took.

    python tests/zoo/large.py [--gigabytes 3]

Writes twice that much into a temporary folder (TMPDIR chooses where).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

WIDTH = 5657  # one weight matrix of this width takes 128 MB


def build(path: Path, layers: int) -> int:
    """Write a chain of Gemm, BatchNormalization and Relu with all its constants outside; return their bytes."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    with path.with_suffix(".data").open("wb") as file:

        def store(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", file_name), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.tobytes())
            tensors.append(tensor)
            return name

        file_name, value = path.with_suffix(".data").name, "x"
        for i in range(layers):
            weight = store(f"fc{i}.weight", np.roll(block, i, 0))
            vectors = [1 + 0.1 * rng.random(WIDTH) if k in (0, 3) else 0.1 * rng.random(WIDTH) for k in range(4)]
            names = [store(f"bn{i}.{k}", vector.astype(np.float32)) for k, vector in enumerate(vectors)]
            nodes.append(helper.make_node("Gemm", [value, weight], [f"g{i}"], name=f"fc{i}", transB=1))
            nodes.append(helper.make_node("BatchNormalization", [f"g{i}", *names], [f"b{i}"], name=f"bn{i}"))
            nodes.append(helper.make_node("Relu", [f"b{i}"], [f"r{i}"], name=f"relu{i}"))
            value = f"r{i}"
        size = file.tell()
    shape: list[str | int | None] = ["N", WIDTH]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return size


def main() -> int:
    """Build, fold, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        print(build(options.build, max(1, round(options.gigabytes * 1e9 / (4 * WIDTH**2)))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "large.onnx")
        # In a process of its own: a peak of this one would count as a peak of the processes that it starts.
        building = [sys.executable, __file__, "--gigabytes", str(options.gigabytes), "--build", str(path)]
        size = int(subprocess.run(building, capture_output=True, text=True, check=True).stdout)
        report_path = Path(scratch, "report.json")
        command = [sys.executable, "-m", "bnfold", "optimize", str(path), "--no-verify", "--json", str(report_path)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        report = json.loads(report_path.read_text())
    print(
        f"{size / 1e9:.2f} GB of external data, BatchNormalization {report['batchnorm']['before']} -> "
        f"{report['batchnorm']['after']}, certificate {'holds' if report['certificate']['ok'] else 'FAILED'}: "
        f"{used.ru_maxrss / 1024:.0f} MB of resident memory at the peak, {seconds:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU"
    )
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
