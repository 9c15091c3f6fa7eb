"""Callers whose packets stop without a FIN: a phone out of reach, a laptop that sleeps."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final

from tests.chaos.findings import Findings, spread
from tests.chaos.kind import Kind
from tests.chaos.needs import Need
from tests.chaos.stage import PacketStage, Size, packet_stage
from tests.harness.caller import chat
from tests.harness.counting_upstream import MODEL, UNLIMITED
from tests.harness.network_namespace import dial_from
from tests.harness.packet_link import GOOD, HERE, NOTHING_PASSES
from tests.harness.processes import wait_until

VANISHING: Final = 4
FREE_WITHIN_S: Final = 30.0
LOOKED_FOR_S: Final = 60.0
THINKS_S: Final = 300.0  # the first byte never comes
_BEGIN_S: Final = 15.0


class VanishedCallers(Kind[PacketStage]):
    name = "vanished"
    promise = f"the slot of a caller that vanished without FIN is free within {FREE_WITHIN_S:g} s"
    needs = (Need.NAMESPACES, Need.TUN)

    def __init__(self, dice: random.Random) -> None:
        super().__init__(dice)
        self._freed_s: list[float] = []

    def stage(self, folder: Path, callers: int) -> AbstractContextManager[PacketStage]:
        # No others: what the upstream still answers is then what the vanished ones hold.
        return packet_stage(folder, Size(0), self.dice, node_inside=False)

    def apply(self, stage: PacketStage, found: Findings) -> None:
        self._vanish(stage, found, "in mid-answer", _all_hear)
        self.undo(stage)
        self._vanish(stage, found, "before the first byte", _all_wait, thinks_s=THINKS_S)

    def _vanish(
        self,
        stage: PacketStage,
        found: Findings,
        when: str,
        begun: Callable[[PacketStage, list[_Caller]], bool],
        **fields: float,
    ) -> None:
        callers = [_Caller(stage, **fields) for _ in range(VANISHING)]
        try:
            wait_until(lambda: begun(stage, callers), f"the requests are not {when}", _BEGIN_S)
            stage.link.weather = NOTHING_PASSES
            since = time.monotonic()
            while stage.upstream.seen.running and time.monotonic() - since < LOOKED_FOR_S:
                time.sleep(0.05)
            took_s, left = time.monotonic() - since, stage.upstream.seen.running
            self._freed_s.append(took_s)
            if left:
                found.broken.append(f"{when}: {left} slots are still busy {took_s:.0f} s later")
            elif took_s > FREE_WITHIN_S:
                found.broken.append(f"{when}: the slots were free only after {took_s:.0f} s")
        finally:
            for one in callers:
                one.close()

    def undo(self, stage: PacketStage) -> None:
        stage.link.weather = GOOD
        wait_until(lambda: not stage.upstream.seen.running, "slots stay busy", LOOKED_FOR_S)

    def check(self, stage: PacketStage, found: Findings) -> None:
        found.notes.append(f"from the last packet to a free slot: {spread(self._freed_s)}")


def _all_hear(stage: PacketStage, callers: list[_Caller]) -> bool:
    return all(one.hears for one in callers)


def _all_wait(stage: PacketStage, callers: list[_Caller]) -> bool:
    return stage.upstream.seen.running == len(callers)


class _Caller:
    """One request over the link. `hears`: whether its answer has begun."""

    def __init__(self, stage: PacketStage, **fields: float) -> None:
        self.hears = False
        tls = stage.running.tls()
        tls.check_hostname = False  # the certificate names 127.0.0.1
        plain = dial_from(stage.namespace, (HERE, stage.running.port))
        self._socket = tls.wrap_socket(plain)
        body = chat(MODEL, stream=True, max_tokens=UNLIMITED, **fields)
        self._socket.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\n"
            b"Content-Type: application/json\r\n"
            + f"Authorization: Bearer {stage.key.secret}\r\n".encode()
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        try:
            while data := self._socket.recv(1 << 16):
                self.hears = self.hears or b'"content": "' in data
        except (OSError, ValueError):  # closed by `close`
            return

    def close(self) -> None:
        """Close the socket; the other end is not told, since the link passes nothing."""
        with suppress(OSError):  # it is not connected any more
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reading.join()
        self._socket.close()
