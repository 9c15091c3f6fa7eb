"""A link that loses, delays, reorders and throttles IP packets: two TUN devices and this program.

One device is here, the other in a network namespace; every packet between them passes a thread of
this process, which treats it as `Weather` says. `tc netem` does the same, but many kernels lack it.
Needs CAP_NET_ADMIN, `ip` and /dev/net/tun; leaves nothing behind, since a TUN device is gone when
the program that opened it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .network_namespace import Namespace

HERE: Final = "198.18.9.1"
"""Where those in the namespace reach the test by the link."""

THERE: Final = "198.18.9.2"

TUN_DEVICE: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000  # packets alone, without a header of the driver's before each
_INTERFACE_NAME_BYTES: Final = 16
_PACKET_BYTES: Final = 2048  # more than the devices' MTU of 1500
_QUEUE_S: Final = 0.5  # what a slow link holds; what comes on top is dropped, as routers do


@dataclass(frozen=True, slots=True)
class Weather:
    """What the link does to packets, each way alike. The default is a good link.

    `loss` and `reordered` are shares of all packets; a reordered one is `late_s` later than the
    others. `largest_bytes`: longer packets vanish, without the ICMP message that should say so.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    reordered: float = 0.0
    late_s: float = 0.02
    bytes_per_s: float = 0.0
    largest_bytes: int = _PACKET_BYTES


GOOD: Final = Weather()
NOTHING_PASSES: Final = Weather(loss=1.0)


@dataclass(slots=True)
class _Way:
    """One direction. `free_at`: when a link with a limited rate has sent what it has taken."""

    source: int
    target: int
    free_at: float = 0.0
    newest_at: float = 0.0


@dataclass(slots=True)
class PacketLink:
    """Made by `packet_link`. `weather` may be set at any time, from any thread."""

    here: int
    there: int
    dice: random.Random
    weather: Weather = GOOD
    passed: int = 0
    dropped: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    started: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """The thread's body, until `stop`."""
        for source, target in ((self.here, self.there), (self.there, self.here)):
            os.set_blocking(source, False)
            self._loop.add_reader(source, self._read, _Way(source, target))
        self._loop.call_soon(self.started.set)
        self._loop.run_forever()
        self._loop.close()

    def stop(self) -> None:
        """End `run`; packets that are still under way are dropped."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _read(self, way: _Way) -> None:
        packet = os.read(way.source, _PACKET_BYTES)
        due_at = self._due_at(way, len(packet))
        if due_at is None:
            self.dropped += 1
        elif due_at <= self._loop.time():
            self._write(way.target, packet)
        else:
            self._loop.call_at(due_at, self._write, way.target, packet)

    def _due_at(self, way: _Way, size: int) -> float | None:
        """When a packet arrives at the other end; None if it does not."""
        weather, now = self.weather, self._loop.time()
        if size > weather.largest_bytes or self.dice.random() < weather.loss:
            return None
        sent_at = now
        if weather.bytes_per_s:
            sent_at = max(now, way.free_at) + size / weather.bytes_per_s
            if sent_at - now > _QUEUE_S:
                return None
            way.free_at = sent_at
        due_at = sent_at + weather.delay_s + self.dice.random() * weather.jitter_s
        if self.dice.random() < weather.reordered:
            return due_at + weather.late_s  # those behind it overtake
        way.newest_at = due_at = max(due_at, way.newest_at)  # jitter alone reorders nothing
        return due_at

    def _write(self, target: int, packet: bytes) -> None:
        try:
            os.write(target, packet)
        except OSError:  # the device's queue is full, or the namespace is being taken down
            self.dropped += 1
        else:
            self.passed += 1


@contextmanager
def packet_link(namespace: Namespace, dice: random.Random) -> Iterator[PacketLink]:
    """A good link between this thread's network (`HERE`) and `namespace` (`THERE`)."""
    tag = namespace.device.removesuffix("i")
    here, there = _open(f"{tag}h"), _open(f"{tag}t")
    try:
        _ip("addr", "add", f"{HERE}/24", "dev", f"{tag}h")
        _ip("link", "set", f"{tag}h", "up")
        _ip("link", "set", f"{tag}t", "netns", namespace.name)
        _ip("-n", namespace.name, "addr", "add", f"{THERE}/24", "dev", f"{tag}t")
        _ip("-n", namespace.name, "link", "set", f"{tag}t", "up")
        link = PacketLink(here, there, dice)
        thread = threading.Thread(target=link.run)
        thread.start()
        link.started.wait()
        try:
            yield link
        finally:
            link.stop()
            thread.join()
    finally:
        os.close(here)
        os.close(there)


def _open(name: str) -> int:
    """A new TUN device; closing the descriptor removes it."""
    device = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    wish = struct.pack(f"{_INTERFACE_NAME_BYTES}sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(device, _TUNSETIFF, wish)
    return device


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)
