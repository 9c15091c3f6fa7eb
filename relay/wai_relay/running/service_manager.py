"""What a relay that systemd started tells it (sd_notify(3)) and gets from it (sd_listen_fds(3))."""

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
    """Send assignments such as "READY=1" to the service manager; without one, do nothing."""
    address = environment.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux' abstract names begin with a zero byte
        address = "\0" + address[1:]
    # A service manager that does not listen is no reason for a relay not to serve.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(words).encode(), address)


def notify_ready() -> None:
    """Report that this process serves, and that it is the service's main process: after an upgrade
    the service manager still knows its predecessor as that."""
    notify(f"MAINPID={os.getpid()}", "READY=1")


def notify_stopping(*, succeeded: bool) -> None:
    """Report that the service ends; with `succeeded` it goes on in another process: say nothing.

    This process is named as the main one again, since a successor that is ended before it took over
    may have named itself.
    """
    if not succeeded:
        notify(f"MAINPID={os.getpid()}", "STOPPING=1")


def passed_sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the listening sockets that systemd opened for this process; none without systemd.

    The variables are removed from `environment`, so that child processes do not see them.
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
