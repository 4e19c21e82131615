"""A real Triton server: the one in the package nvidia-pytriton, which has the Python backend and no other."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))
TRITON = PACKAGES / "pytriton" / "tritonserver"


@dataclass(frozen=True)
class Server:
    """Where a running server listens."""

    http: str
    grpc: str
    log: Path

    def is_ready(self, model: str = "") -> bool:
        """Whether the server, or one model, takes requests."""
        path = f"v2/models/{model}/ready" if model else "v2/health/ready"
        try:
            with urllib.request.urlopen(f"http://{self.http}/{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextlib.contextmanager
def running(repository: Path, scratch: Path, *arguments: str, seconds: float = 120) -> Iterator[Server]:
    """A server on this machine's own addresses, ended with the block.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the last lines of its log.
    """
    backends, log = _backends(scratch), scratch / "server.log"
    http, grpc = (f"127.0.0.1:{port}" for port in _free_ports(2))
    command = [
        str(TRITON / "bin" / "tritonserver"), f"--model-repository={repository}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", f"--http-port={http.split(':')[1]}", "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc.split(':')[1]}", "--allow-metrics=false", *arguments,
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=_environment(), start_new_session=True)
    server = Server(http, grpc, log)
    try:
        end = time.monotonic() + seconds
        while not server.is_ready():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the server is not ready:\n" + "\n".join(log.read_text().splitlines()[-40:]))
            time.sleep(0.3)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _backends(scratch: Path) -> Path:
    """The Python backend with the program that runs models in this Python, which lies elsewhere in the package."""
    made = scratch / "backends" / "python"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(TRITON / "backends" / "python", made)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(TRITON / "python_backend_stubs" / version / "triton_python_backend_stub", made)
    return made.parent


def _environment() -> dict[str, str]:
    """The server's libraries and this Python's own, and this environment's programs first."""
    libraries = [str(PACKAGES / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": ":".join(programs)}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
