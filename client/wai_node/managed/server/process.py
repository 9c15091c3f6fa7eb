"""One inference server as a process: found, started, its log read, stopped with its whole group.

The key goes by environment, never by argv; it listens at a unix socket that we name, so that
nothing is learned from its log, in which a model file's metadata stands too. It dies with the node.
It knows nothing of health or of retries.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from wai_protocol.errors import Fault, TransportError
from wai_transport.exit_status import describe_exit

from . import launch as launch_program
from .environment import server_environment
from .log_file import LogFile
from .server_socket import ServerSocket

NAMES: Final = ("llama-server", "llama-server-vulkan", "llama-server-cuda")
STOP_GRACE_S: Final = 10.0  # llama-server ends within milliseconds of SIGTERM, unless it is loading
# For what is still in the pipe. Whoever holds it for longer has left the group; see `orphans`.
LOG_REST_S: Final = 1.0
READ_BYTES: Final = 65536  # what a pipe holds on Linux
# 4 shows the sizes of buffers, from which fits learn; 5 and up would show prompts
VERBOSITY: Final = 4
# What is told apart from the log's last lines, in the words of llama.cpp, and what to do about it.
_HINTS: Final = (
    (
        re.compile(r"unknown model architecture: *'?([\w-]+)"),
        "its llama.cpp is too old for this model; install a newer llama-server",
    ),
    (
        re.compile(
            r"out of memory|failed to allocate|cudaMalloc|ErrorOutOfDeviceMemory|bad_alloc"
            r"|Resource temporarily unavailable",  # no room for another thread's stack
            re.I,
        ),
        "there is not enough memory; deploy it with a smaller context or quantisation",
    ),
    (
        re.compile(r"couldn't bind|Address already in use", re.I),
        "it can't listen at a unix socket; install a newer llama-server",
    ),
    (
        re.compile(
            r"error loading model|failed to load model|invalid magic|is not within the file bounds",
            re.I,
        ),
        "llama-server rejects the file; choose another quantisation or repository",
    ),
    (
        re.compile(r"GGML_ASSERT\(.*\) failed"),
        "llama.cpp has a fault with this model on this machine; install another version of it",
    ),
    (
        re.compile(r"error while loading shared libraries: (\S+)"),
        "a library of llama-server is missing on this node",
    ),
)


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """What is run: an argv that `ServerOptions` are added to."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a model is served. `context_tokens` is per slot; `gpu_layers` and `threads` None: the
    server's own choice. `extra` are flags that this node's owner configured."""

    model: Path
    alias: str
    context_tokens: int
    slots: int
    gpu_layers: int | None = None
    threads: int | None = None
    extra: tuple[str, ...] = ()

    def to_argv(self, socket: Path) -> list[str]:
        """llama-server's flags; the in-process server understands the same. It is to listen at
        `socket`: every llama-server that knows the other flags can."""
        argv = [
            *("--model", str(self.model), "--alias", self.alias),
            *("--host", str(socket)),
            *("--ctx-size", str(self.context_tokens * self.slots), "--parallel", str(self.slots)),
            "--no-kv-unified",  # each slot has its own context: what one caller fills is its own
            *("--fit", "off"),  # what does not fit must fail, not shrink unseen
            *("--cache-ram", "0"),  # else it may take 8 GiB of RAM beside what was reckoned
            *("--verbosity", str(VERBOSITY), "--metrics", "--slots", "--no-webui"),
        ]
        if self.gpu_layers is not None:
            argv += ["--gpu-layers", str(self.gpu_layers)]
        if self.threads is not None:
            argv += ["--threads", str(self.threads)]
        return [*argv, *self.extra]


def find_command(configured: str | None = None) -> ServerCommand:
    """The server to run: the configured one, llama-server on PATH, xllamacpp's in a child of ours.

    Raises `TransportError` that says what to install.
    """
    if configured:
        found = shutil.which(configured)
        if found is None:
            raise TransportError(
                f"the configured llama-server {configured!r} is not there or not executable",
                Fault.NOT_FOUND,
            )
        return ServerCommand((found,))
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return ServerCommand((found,))
    if importlib.util.find_spec("xllamacpp") is not None:
        # -P: no module is imported from the working directory.
        return ServerCommand(
            (sys.executable, "-P", "-m", "wai_node.managed.server.inprocess_server")
        )
    raise TransportError(
        "no llama-server is on this node's PATH; install llama.cpp, or `pip install 'wai[demo]'`",
        Fault.NOT_FOUND,
    )


class ServerProcess:
    """A started server. `start` once, `follow` in a task of its own until it ends, `stop` at will.

    `socket` is where it is to listen, which takes it a moment; it is removed when the server has
    ended. `marks` go into its environment.
    """

    def __init__(
        self,
        command: ServerCommand,
        options: ServerOptions,
        key: str,
        log: LogFile,
        socket: ServerSocket,
        marks: Mapping[str, str] | None = None,
    ) -> None:
        self.options, self.log, self.socket = options, log, socket
        self._marks = dict(marks or {})
        self.ended = anyio.Event()
        self._command, self._key = command, key
        self._process: anyio.abc.Process | None = None
        self._pipe: int | None = None
        self._log_ended = anyio.Event()

    @property
    def pid(self) -> int | None:
        """The process id, also its group's; None before `start`."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process. Raises `TransportError` where the system refuses."""
        argv = [*self._command.argv, *self.options.to_argv(self.socket.path)]
        launch = [sys.executable, "-I", launch_program.__file__, str(os.getpid())]
        # Our own pipe: with asyncio's, a process has not ended while anybody still holds its end
        self._pipe, theirs = os.pipe()
        try:
            self._process = await anyio.open_process(
                [*launch, *argv],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=subprocess.STDOUT,
                env={
                    **server_environment(os.environ),
                    "LLAMA_API_KEY": self._key,
                    **self._marks,
                },
                start_new_session=True,  # a group of its own, out of a terminal's Ctrl-C
            )
        except OSError as error:
            os.close(self._pipe)
            raise TransportError(f"{argv[0]} can't be started: {error.strerror}") from error
        finally:
            os.close(theirs)
        os.set_blocking(self._pipe, False)
        asyncio.get_running_loop().add_reader(self._pipe, self._take, self._pipe)

    async def follow(self) -> None:
        """Wait until the process has ended, while its log is read; then its group is ended too. Not
        cancelled but by `stop`: whoever runs this calls it."""
        assert self._process is not None
        with anyio.CancelScope(shield=True):  # who cancels us stops the process, then we end
            await self._process.wait()
            self._signal_group(signal.SIGKILL)  # what the server itself started
            with anyio.move_on_after(LOG_REST_S):
                await self._log_ended.wait()
            if self._pipe is not None:
                self._take(self._pipe)  # what is there by now; the loop may have stood still
            self._end_reading()
            self.socket.remove()
            self.ended.set()

    def _take(self, pipe: int) -> None:
        """The pipe has something, or its end."""
        try:
            data = os.read(pipe, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._end_reading()
            return
        self.log.write(data)

    def _end_reading(self) -> None:
        if self._pipe is not None:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = None
            self._log_ended.set()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, and after `grace_s` SIGKILL, to the whole group; returns when it has ended.
        `follow` must run."""
        if self._process is None or self.ended.is_set():
            return
        self._signal_group(signal.SIGTERM)
        with anyio.move_on_after(grace_s):
            await self.ended.wait()
            return
        self._signal_group(signal.SIGKILL)
        await self.ended.wait()

    def explain(self) -> str:
        """Why it ended, in one sentence with what to do; after `follow`."""
        code = self._process.returncode if self._process else None
        text = "\n".join(self.log.tail())
        for pattern, hint in _HINTS:
            if pattern.search(text):
                return f"the server ended: {hint}"
        how = "ended" if code is None else describe_exit(code)
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        return f"the server {how}{hint}; see its log with `wai node logs`"

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # all of it is gone; macOS says so by EPERM
