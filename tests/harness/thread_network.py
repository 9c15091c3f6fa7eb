"""Move a thread into a network namespace: in Linux each thread has its own.

A socket stays in the namespace in which it was made, and a process that a thread starts begins in
the thread's namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from .network_namespace import Namespace
from .real import require_real

_NAMES: Final = Path("/run/netns")  # where `ip netns` keeps them
_CLONE_NEWNET: Final = 0x40000000
_DIAL_TIMEOUT_S: Final = 10.0


@contextmanager
def own_network() -> Iterator[None]:
    """A network with nothing but loopback, for this thread and what it starts.

    What is made in there touches no other test and no network of this machine. Skips the test where
    it can't be had.
    """
    require_real("root")
    with _back_again():
        try:
            _call("unshare", _CLONE_NEWNET)
        except OSError as error:
            pytest.skip(f"this kernel gives no network namespace: {error}")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, capture_output=True)
        yield


def dial_from(namespace: Namespace, address: tuple[str, int]) -> socket.socket:
    """A TCP connection from within `namespace`, for this process to use."""
    there = os.open(_NAMES / namespace.name, os.O_RDONLY)
    try:
        with _back_again():
            _call("setns", there, _CLONE_NEWNET)
            return socket.create_connection(address, timeout=_DIAL_TIMEOUT_S)
    finally:
        os.close(there)


@contextmanager
def _back_again() -> Iterator[None]:
    """At the end, this thread is in the namespace in which it was."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def _call(name: str, *arguments: int) -> None:
    """A function of the C library that returns 0, or sets errno."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
