"""`--listen :PORT` is IPv4 and IPv6, after an upgrade too; IPv4 alone where there is no IPv6."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script

pytestmark = pytest.mark.e2e

# A kernel without IPv6, as a process sees it: socket(AF_INET6, …) fails (seccomp(2), classic BPF).
WITHOUT_IPV6: Final = """
import ctypes, errno, os, struct, sys
ALLOW, FAIL = 0x7FFF0000, 0x00050000 | errno.EAFNOSUPPORT
program = b"".join(
    struct.pack("HBBI", *step)
    for step in [
        (0x20, 0, 0, 0), (0x15, 0, 3, int(sys.argv[1])),
        (0x20, 0, 0, 16), (0x15, 0, 1, 10), (0x06, 0, 0, FAIL), (0x06, 0, 0, ALLOW),
    ]
)
buffer = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("H6xQ", 6, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""
SOCKET_CALL: Final = {"x86_64": "41", "aarch64": "198"}


def _opens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def _relay(tmp_path: Path, port: int) -> list[str]:
    return [script("wai"), "relay", "--data", str(tmp_path / "relay"), "--listen", f":{port}"]


def _running(tmp_path: Path) -> tuple[int, str]:
    found = json.loads((tmp_path / "relay/relay.json").read_text())
    return found["pid"], found["url"]


def test_a_port_without_a_host_is_both_families_also_after_an_upgrade(tmp_path: Path) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    with Daemon(_relay(tmp_path, port), log=tmp_path / "relay.log") as relay:
        relay.wait_for_output("listening on 0.0.0.0 and ::")
        assert _running(tmp_path) == (relay.pid, f"https://127.0.0.1:{port}")
        assert _opens("127.0.0.1", port)
        assert _opens("::1", port)
        relay.send(signal.SIGUSR2)
        wait_until(lambda: _running(tmp_path)[0] != relay.pid, "no new relay took over")
        assert relay.wait() == 0
        assert _opens("127.0.0.1", port)
        assert _opens("::1", port)
        os.kill(_running(tmp_path)[0], signal.SIGTERM)
        wait_until(lambda: not relay.family(), "the successor does not stop")


@pytest.mark.skipif(platform.machine() not in SOCKET_CALL, reason="another system call number")
@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux'")
def test_without_ipv6_it_listens_on_ipv4(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", WITHOUT_IPV6, SOCKET_CALL[platform.machine()]]
    with Daemon(command + _relay(tmp_path, port), log=tmp_path / "relay.log") as relay:
        relay.wait_for_output("(listening on 0.0.0.0)")
        assert _opens("127.0.0.1", port)
