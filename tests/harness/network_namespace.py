"""A separate host whose address can change: a network namespace behind a pair of veths.

Needs root and `ip`; without them the test is skipped, with the reason. The network of this machine
never changes, since other programs act on its changes: Chromium drops all its connections when an
interface comes or goes. So the test itself is in a network namespace of its own too. The addresses
are from the range that is reserved for tests of networks (RFC 2544).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from .real import require_real

_NAMES: Final = Path("/run/netns")  # where `ip netns` keeps them
_CLONE_NEWNET: Final = 0x40000000

OUTSIDE: Final = "198.18.7.1"
"""Where those in the namespace reach the test, by the way whose address changes."""

BESIDE: Final = "198.18.8.1"
"""The same, by a way that never changes."""

_FIRST: Final = "198.18.7.2"
_INSIDE_BESIDE: Final = "198.18.8.2"


@dataclass(slots=True)
class Namespace:
    """A running one. `address` is its own towards `OUTSIDE`."""

    name: str
    device: str
    address: str = _FIRST

    @property
    def command(self) -> tuple[str, ...]:
        """What to put in front of a command, to have it run in there."""
        return ("ip", "netns", "exec", self.name)

    def move(self, address: str) -> None:
        """Another address from now on; the old one is gone, and with it all that came from it."""
        ip("-n", self.name, "addr", "del", f"{self.address}/24", "dev", self.device)
        ip("-n", self.name, "addr", "add", f"{address}/24", "dev", self.device)
        self.address = address


@contextmanager
def network_namespace() -> Iterator[Namespace]:
    """A namespace with two ways to this thread and the processes that it starts, which are in
    `own_network` meanwhile. Everything is gone at the end."""
    with own_network(), _namespace_beside() as namespace:
        yield namespace


@contextmanager
def _namespace_beside() -> Iterator[Namespace]:
    """A namespace, and its two ways to the network that this thread is in."""
    tag = f"{os.getpid() % 10_000}{uuid.uuid4().hex[:3]}"
    name = f"wai-{tag}"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel gives no network namespace: {error.stderr.decode().strip()}")
    try:
        ip("-n", name, "link", "set", "lo", "up")
        device = _way(name, f"wa{tag}", OUTSIDE, _FIRST)
        _way(name, f"wb{tag}", BESIDE, _INSIDE_BESIDE)
        yield Namespace(name, device)
    finally:
        ip("netns", "del", name)  # the ways end with it


@contextmanager
def own_network() -> Iterator[None]:
    """A network with nothing but loopback, for this thread, and for the threads and processes that
    it starts: what is made in there touches no other test and no network of this machine."""
    require_real("root")
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (iproute2)")
    with _back_again():
        try:
            _call("unshare", _CLONE_NEWNET)
        except OSError as error:
            pytest.skip(f"this kernel gives no network namespace: {error}")
        ip("link", "set", "lo", "up")
        yield


def dial_from(namespace: Namespace, address: tuple[str, int]) -> socket.socket:
    """A TCP connection from within `namespace`, for this process; it stays in there for good.

    A thread is in a network namespace, not a process: this one goes there and comes back.
    """
    there = os.open(_NAMES / namespace.name, os.O_RDONLY)
    try:
        with _back_again():
            _call("setns", there, _CLONE_NEWNET)
            return socket.create_connection(address, timeout=10)
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


def _way(name: str, prefix: str, outside: str, inside: str) -> str:
    """A pair of veths with an address at each end; the name of the inner one."""
    outer, inner = f"{prefix}o", f"{prefix}i"
    ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
    ip("addr", "add", f"{outside}/24", "dev", outer)
    ip("link", "set", outer, "up")
    ip("-n", name, "addr", "add", f"{inside}/24", "dev", inner)
    ip("-n", name, "link", "set", inner, "up")
    return inner


def ip(*arguments: str) -> bytes:
    """Run `ip` and return what it printed."""
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)
    return done.stdout
