"""The process of one inference server: start it, read its output, stop its group.

The key is passed in the environment, never in argv. The server listens at a unix socket that we
name, so that its address need not be read from its log, which a model file's metadata could forge.
The process ends with the node. Health checks and retries are `runner`'s and `deployment`'s.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.abc
import msgspec

from wai_node.engines.environment import server_environment
from wai_node.managed.options import DEFAULT, ServeOptions
from wai_node.models.placement import Placement
from wai_node.models.shape import Purpose
from wai_protocol.errors import TransportError
from wai_transport.exit_status import describe_exit

from . import launch as launch_program
from .log_file import LogFile
from .server_socket import ServerSocket

STOP_GRACE_S: Final = 10.0  # llama-server ends within milliseconds of SIGTERM, unless it is loading
# Time to read what is still in the pipe. A process that holds it longer has left the group.
LOG_REST_S: Final = 1.0
# Time for llama-server to print what it has done: a thread of its own does it, which may lag behind
START_LOG_S: Final = 1.0
START_LOG_POLL_S: Final = 0.02
READ_BYTES: Final = 65536  # the capacity of a pipe on Linux
# 4 prints the sizes of buffers, which correct our estimates; 5 and more would print prompts
VERBOSITY: Final = 4
Hints = tuple[tuple[re.Pattern[str], str], ...]
# Known faults: a pattern of llama.cpp's messages, and a sentence that says what to do.
HINTS: Final[Hints] = (
    (
        re.compile(r"error: (?:invalid|unknown) argument: (\S{1,100})"),
        "this llama-server does not know the option {0}; leave it out, or use another engine",
    ),
    (
        re.compile(r"invalid device: (\S{1,40})"),
        "the GPU {0}, on which it was placed, is not there any more; see `wai node engine list` on"
        " the node, and `wai model edit --gpus auto`",
    ),
    (
        re.compile(r"^(error while handling argument .{1,200})", re.MULTILINE),
        "llama-server refuses an option: {0}",
    ),
    (
        re.compile(r"draft model .{1,60} must match|draft vocabs are not compatible", re.I),
        "the draft model has another vocabulary than the model; deploy it with --draft none, or"
        " with a smaller model of the same family",
    ),
    (
        re.compile(r"CUDA driver version is insufficient", re.I),
        "NVIDIA's driver on this node is older than its engine needs: update the driver, or install"
        " another engine (`wai node engine install --backend vulkan`)",
    ),
    (
        re.compile(r"failed to (?:initialize|parse) chat template|chat template parsing error"),
        "the model's chat template can't be read; choose another repository of this model",
    ),
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
        re.compile(r"(?:apply|load) (?:the )?lora adapter|maybe wrong base model", re.I),
        "llama-server can't use the LoRA adapter with this model; it was made for another one",
    ),
    (
        re.compile(r"cache type (\S{1,16}) with block size \d+ does not divide"),
        "this model's heads are too narrow for a cache of type {0}; use f16",
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


class ServerOptions(msgspec.Struct, frozen=True):
    """How a model is served.

    `context_tokens` is per slot. `threads` None: the server's default. `placement`: where its
    layers are, None: as the server does it. `purpose`: what the model is for. `batch_tokens`: what
    is computed at once, None: the server's default. `projector`: what lets it see images.
    `adapter`: a LoRA. `draft`: its draft model. `serve`: how it computes. `extra` are flags that
    the node's owner configured.
    """

    model: Path
    alias: str
    context_tokens: int
    slots: int
    placement: Placement | None = None
    threads: int | None = None
    purpose: Purpose = Purpose.CHAT
    batch_tokens: int | None = None
    serve: ServeOptions = DEFAULT
    projector: Path | None = None
    adapter: Path | None = None
    draft: Path | None = None
    extra: tuple[str, ...] = ()

    def environment(self, key: str) -> dict[str, str]:
        """Return what the server gets in its environment beside what all servers get."""
        given = dict(variable.split("=", 1) for variable in self.serve.environment)
        return {**given, "LLAMA_API_KEY": key}

    def to_argv(self, socket: Path) -> list[str]:
        """Return the flags for llama-server, or for `inprocess_server`, to listen at `socket`.

        Every llama-server that knows the other flags can listen at a unix socket.
        """
        argv = [
            *("--model", str(self.model), "--alias", self.alias),
            *("--host", str(socket)),
            *("--ctx-size", str(self.context_tokens * self.slots), "--parallel", str(self.slots)),
            "--no-kv-unified",  # callers do not take context from each other
            *("--fit", "off"),  # what does not fit must fail, not silently use a smaller context
            *("--cache-ram", "0"),  # else it may use up to 8 GiB of RAM more than we estimated
            *("--verbosity", str(VERBOSITY), "--metrics", "--slots", "--no-webui"),
        ]
        match self.purpose:
            case Purpose.EMBEDDING:
                argv.append("--embeddings")
            case Purpose.RERANK:
                argv.append("--reranking")
            case Purpose.CHAT:
                pass
        if self.batch_tokens is not None:
            batch = str(self.batch_tokens)
            argv += ["--batch-size", batch, "--ubatch-size", batch]
        if self.projector is not None:
            argv += ["--mmproj", str(self.projector)]
            if self.placement is not None and not self.placement.shares:
                argv.append("--no-mmproj-offload")
        if self.adapter is not None:
            argv += ["--lora", str(self.adapter)]
        if self.draft is not None:
            argv += self._draft_argv(self.draft)
        if self.placement is not None:
            argv += self.placement.to_argv()
        if self.threads is not None:
            argv += ["--threads", str(self.threads)]
        return [*argv, *self.serve.to_argv(), *self.extra]

    def _draft_argv(self, draft: Path) -> list[str]:
        """Have a draft model beside the first layers that are on a GPU, or in RAM."""
        argv = ["--model-draft", str(draft), "--spec-type", "draft-simple"]
        if self.serve.draft_max is not None:
            argv += ["--spec-draft-n-max", str(self.serve.draft_max)]
        if self.placement is None:
            return argv
        if not self.placement.shares:
            return [*argv, "--spec-draft-ngl", "0"]
        argv += ["--spec-draft-ngl", "all"]
        device = self.placement.shares[0].device
        return [*argv, "--spec-draft-device", device] if device else argv


class ProgramOptions(Protocol):
    """With what a server's program is started."""

    def to_argv(self, socket: Path) -> list[str]:
        """Its arguments, to listen at `socket`."""

    def environment(self, key: str) -> dict[str, str]:
        """Its own part of the environment, with the inference key."""


class ServerProcess:
    """A server's process. Call `start` once, then `follow` in its own task; `stop` at any time.

    `command` is the program, to which the flags of `options` are appended. The server will listen
    at `socket`, some time after `start`; the socket is removed when the process has ended. `marks`
    are added to its environment. `hints`: what its complaints mean, by their patterns.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        options: ProgramOptions,
        key: str,
        log: LogFile,
        socket: ServerSocket,
        marks: Mapping[str, str] | None = None,
        hints: Hints = HINTS,
    ) -> None:
        self._hints = hints
        self.options, self.log, self.socket = options, log, socket
        self._marks = dict(marks or {})
        self.ended = anyio.Event()
        self._command, self._key = command, key
        self._process: anyio.abc.Process | None = None
        self._pipe: int | None = None
        self._log_ended = anyio.Event()

    @property
    def pid(self) -> int | None:
        """The id of the process and of its group; None before `start`."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process. Raises `TransportError` where the system refuses."""
        argv = [*self._command, *self.options.to_argv(self.socket.path)]
        launch = [sys.executable, "-I", launch_program.__file__, str(os.getpid())]
        # Our own pipe: asyncio's would not report the end while another process holds the pipe
        self._pipe, theirs = os.pipe()
        try:
            self._process = await anyio.open_process(
                [*launch, *argv],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=subprocess.STDOUT,
                env={
                    **server_environment(os.environ),
                    **self.options.environment(self._key),
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
        """Read the output until the process has ended, then end its group.

        Ignores cancellation: whoever cancels the task must also call `stop`.
        """
        assert self._process is not None
        with anyio.CancelScope(shield=True):  # `stop` ends the process, and so this method
            await self._process.wait()
            self._signal_group(signal.SIGKILL)  # processes that the server started
            with anyio.move_on_after(LOG_REST_S):
                await self._log_ended.wait()
            self.catch_up()
            self._end_reading()
            self.socket.remove()
            self.ended.set()

    async def read_start(self, timeout_s: float = START_LOG_S) -> None:
        """Take into the log what llama-server printed while it loaded, or what came in time."""
        with anyio.move_on_after(timeout_s):
            while not self.log.idle and not self.ended.is_set():
                self.catch_up()
                await anyio.sleep(START_LOG_POLL_S)

    def catch_up(self) -> None:
        """Take into the log what it has printed already: the event loop may have been busy."""
        if self._pipe is not None:
            self._take(self._pipe)

    def _take(self, pipe: int) -> None:
        """Read the pipe, which has data or has ended."""
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
        """Send SIGTERM, and after `grace_s` SIGKILL, to the group; return when it has ended.

        `follow` must be running.
        """
        if self._process is None or self.ended.is_set():
            return
        self._signal_group(signal.SIGTERM)
        with anyio.move_on_after(grace_s):
            await self.ended.wait()
            return
        self._signal_group(signal.SIGKILL)
        await self.ended.wait()

    def explain(self) -> str:
        """Return a sentence that says why it ended and what to do. Call it after `follow`."""
        code = self._process.returncode if self._process else None
        text = "\n".join(self.log.tail())
        for pattern, hint in self._hints:
            if found := pattern.search(text):
                return f"the server ended: {hint.format(*found.groups())}"
        how = "ended" if code is None else describe_exit(code)
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        return f"the server {how}{hint}; see its log with `wai node logs`"

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # the group has ended; macOS reports that as EPERM
