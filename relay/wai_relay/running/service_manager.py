"""systemd, where it started us: hears how we are (sd_notify(3)), and may have opened our port."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

from wai_protocol.errors import TransportError

VARIABLE: Final = "NOTIFY_SOCKET"
FIRST_PASSED: Final = 3  # sd_listen_fds(3): the first after stdin, stdout and stderr


def notify(*words: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send, for instance, "READY=1". Without a service manager, nothing is sent."""
    address = environment.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux' abstract names begin with a zero byte
        address = "\0" + address[1:]
    # A service manager that does not listen is no reason for a relay not to serve.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(words).encode(), address)


def notify_ready() -> None:
    """We serve; and we are the main process, also where a predecessor was (an upgrade)."""
    notify(f"MAINPID={os.getpid()}", "READY=1")


def notify_stopping(*, succeeded: bool) -> None:
    """We end, and the service with us; with a successor the service goes on, and nothing is said.

    We are the main process still: a successor that is given up may have said otherwise.
    """
    if not succeeded:
        notify(f"MAINPID={os.getpid()}", "STOPPING=1")


def passed_sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that systemd opened for us (sd_listen_fds(3)); none without it.

    The variables are taken away: they are for this process, and not for those that it starts.
    Raises `TransportError` for a socket that no relay can listen on.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    passed = []
    for descriptor in range(FIRST_PASSED, FIRST_PASSED + int(count)):
        # A successor gets what it is given, by number, and nothing else.
        os.set_inheritable(descriptor, False)  # noqa: FBT003
        passed.append(sock := socket.socket(fileno=descriptor))
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
            raise TransportError(
                "the service manager passed a socket that is not for TCP connections;"
                " in wai-relay.socket say ListenStream=PORT, and Accept=no"
            )
    return passed
