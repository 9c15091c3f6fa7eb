"""Run an engine to see what it is: whether it starts here, its version, the devices it can use.

Blocking. What it prints is bounded, and so is its time; its whole process group is ended.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import Final

import msgspec

from wai_protocol.errors import Fault, TransportError
from wai_transport.exit_status import describe_exit

from .environment import server_environment

TIMEOUT_S: Final = 15.0  # drivers that initialise slowly take seconds; a node waits for it
MAX_OUTPUT_BYTES: Final = 256 << 10
MAX_DEVICES: Final = 64
MAX_VERSION_CHARS: Final = 80

_VERSION: Final = re.compile(r"^version: *(.+?) *$", re.MULTILINE)
# `  CUDA0: NVIDIA GeForce RTX 4090 (24111 MiB, 23700 MiB free)`
_DEVICE: Final = re.compile(
    r"^ +([A-Za-z]\w{0,31}): (.{1,200}?) \((\d{1,12}) MiB, (\d{1,12}) MiB free\) *$", re.MULTILINE
)
_SOFTWARE: Final = re.compile(r"llvmpipe|lavapipe|swiftshader", re.IGNORECASE)
_HINTS: Final = (
    (
        re.compile(r"version [`'](GLIBC_[\d.]+)' not found"),
        "it needs {0}, which is newer than this system's C library; use a newer system, or a"
        " llama.cpp that was built for this one",
    ),
    (
        re.compile(r"libgomp\.so"),
        "the library libgomp is missing (Debian, Ubuntu: `apt-get install libgomp1`)",
    ),
    (
        re.compile(r"error while loading shared libraries: (\S{1,100}):"),
        "the library {0} is missing on this machine",
    ),
    (re.compile(r"Library not loaded: (\S{1,200})"), "the library {0} is missing on this machine"),
)


class Device(msgspec.Struct, frozen=True):
    """A GPU as the engine sees it, such as CUDA0; memory in bytes."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


def version_of(argv: tuple[str, ...]) -> str:
    """Return the version that `argv --version` prints. Raises `TransportError`: it does not run."""
    code, text = run_bounded((*argv, "--version"))
    if code != 0:
        raise TransportError(f"{argv[0]} does not run here: {_why(code, text)}", Fault.NOT_FOUND)
    found = _VERSION.search(text)
    shown = "".join(filter(str.isprintable, found[1] if found else ""))
    return shown[:MAX_VERSION_CHARS] or "unknown"


def devices_of(argv: tuple[str, ...]) -> tuple[Device, ...] | None:
    """Return the GPUs that the engine can use; None if it does not tell. Nothing is raised.

    Devices without memory of their own, and GPUs that are emulated, don't count.
    """
    code, text = run_bounded((*argv, "--list-devices"))
    if code != 0 or "Available devices" not in text:
        return None
    return tuple(
        Device(name, "".join(filter(str.isprintable, about)), int(total) << 20, int(free) << 20)
        for name, about, total, free in _DEVICE.findall(text)[:MAX_DEVICES]
        if int(total) and not _SOFTWARE.search(about)
    )


def run_bounded(argv: tuple[str, ...], timeout_s: float = TIMEOUT_S) -> tuple[int | None, str]:
    """Run a program; return its exit status and what it printed.

    The status is None if it could not be started (then the text says why) or took too long.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - what this node would run anyway
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=server_environment(os.environ),
            start_new_session=True,
        )
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            return None, "it is made for another kind of processor or system"
        return None, error.strerror or str(error)
    assert process.stdout is not None
    with process.stdout as pipe:
        data, ended = _read(pipe.fileno(), timeout_s)
    if ended:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
    late = process.poll() is None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    text = data.decode("utf-8", "replace")
    return (None, f"it was still busy after {timeout_s:g} s") if late else (code, text)


def _read(descriptor: int, timeout_s: float) -> tuple[bytes, bool]:
    """Read until the end, the bound or the time is reached; return whether it was the end."""
    data, until = b"", time.monotonic() + timeout_s
    while len(data) < MAX_OUTPUT_BYTES:
        left = until - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return data, False
        piece = os.read(descriptor, 65536)
        if not piece:
            return data, True
        data += piece
    return data, True


def _why(code: int | None, text: str) -> str:
    for pattern, words in _HINTS:
        if found := pattern.search(text):
            return words.format(*found.groups())
    if code == -signal.SIGILL:
        return "it uses instructions that this processor lacks"
    lines = [line for line in text.splitlines() if line.strip()]
    last = "".join(filter(str.isprintable, lines[-1] if lines else ""))[:200]
    if code is None:
        return last
    return f"it {describe_exit(code)}" + (f" ({last})" if last else "")
