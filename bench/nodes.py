"""Run a thousand nodes on one relay from one process, each of which sends a STATUS once a second.

They speak the real handshake and session; there is no upstream behind them and nobody calls them.
Prints what they cost the relay as JSON. Run by `bench.run`, on a relay of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import uvloop

from bench.clients import Target
from bench.load import Watch
from bench.procstat import allow_many_files, family, rss_bytes
from bench.summary import Figures
from wai_node.tunnel.dial import RelayAddress, dial
from wai_protocol import invite as invites
from wai_protocol.events import Event
from wai_protocol.handshake import Hello
from wai_protocol.identity import NodeKey
from wai_protocol.session import Role, Session
from wai_protocol.status import ModelStatus, NodeStatus
from wai_transport.live_session import Ended, LiveSession

_JOINING_AT_ONCE: Final = 16
_WARM_UP_S: Final = 3.0
_MEASURED_S: Final = 10.0
_STATUS_EVERY_S: Final = 1.0


class BenchNode:
    """One session, and the status that it reports."""

    def __init__(self, number: int) -> None:
        self.name = f"bench-{number}"
        self._beat = 0
        self.session: LiveSession | None = None
        self.lost = False

    async def join(self, text: str) -> None:
        """Enrol with an invite, and keep the session that came with it."""
        invite = invites.decode(text)
        key = NodeKey.generate()
        hello = Hello(key.public, self.name, b"", agent="bench", instance=self.name)
        address = RelayAddress(invite.url, invite.relay, invite.pin)
        connected = await dial(address, key, hello, invite.secret)
        welcome = connected.welcome
        session = LiveSession(
            Session(Role.NODE, local=hello.limits, peer=welcome.limits),
            on_event=self._ignore,
            on_detached=self._on_detached,
            on_ended=self._on_ended,
            ttl_s=welcome.limits.session_ttl_s,
        )
        session.attach(
            connected.transport, welcome.received, connected.leftover, peer=welcome.limits
        )
        connected.transport.resume_reading()
        self.session = session

    def report(self) -> None:
        """Send a status that differs from the last, as a node at work does."""
        self._beat += 1
        model = ModelStatus(
            id="SmolLM2-135M-Instruct-Q4_1",
            upstream="http://127.0.0.1:8080",
            context_tokens=4096,
            slots_total=4,
            slots_busy=self._beat % 5,
            decode_tps=50.0 + self._beat % 7,
        )
        if self.session is not None and not self.lost:
            self.session.core.send_status(NodeStatus(models=(model,), version="bench"))
            self.session.flush()

    def close(self) -> None:
        """End the session."""
        if self.session is not None:
            self.session.close()

    def _ignore(self, event: Event) -> None:
        """Do nothing: these nodes get no requests."""

    def _on_detached(self, session: LiveSession) -> None:
        self.lost = True

    def _on_ended(self, session: LiveSession, why: Ended) -> None:
        self.lost = True


def make_invites(data: Path, names: list[str]) -> Iterator[str]:
    """An invite for each name, from the admin API of the relay that runs on `data`."""
    relay = json.loads((data / "relay.json").read_text())
    token = (data / "admin.token").read_text().strip()
    address = urlsplit(relay["url"])
    context = ssl.create_default_context(cadata=(data / "relay.crt").read_text())
    context.check_hostname = False
    connection = http.client.HTTPSConnection(
        address.hostname or "", address.port, timeout=10, context=context
    )
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for name in names:
        connection.request("POST", "/admin/v1/invites", json.dumps({"name": name}), headers)
        answer = connection.getresponse()
        made = json.loads(answer.read())
        if answer.status not in (200, 201):
            raise RuntimeError(f"no invite for {name}: {made}")
        yield made["invite"]
    connection.close()


async def measure(data: Path, relay_pid: int, count: int) -> Figures:
    """CPU, as a share of one core, and resident memory per node."""
    relay = family([relay_pid])
    nodes = [BenchNode(number) for number in range(count)]
    texts = await asyncio.to_thread(lambda: list(make_invites(data, [n.name for n in nodes])))
    before = rss_bytes(relay)
    gate = asyncio.Semaphore(_JOINING_AT_ONCE)

    async def join(node: BenchNode, text: str) -> None:
        async with gate:
            await node.join(text)

    await asyncio.gather(*(join(node, text) for node, text in zip(nodes, texts, strict=True)))

    async def report_for_ever() -> None:
        """Send each node's status once a second, spread evenly over the second."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            for node in nodes:
                due_s += _STATUS_EVERY_S / count
                if (wait_s := due_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                node.report()

    reporting = asyncio.ensure_future(report_for_ever())
    await asyncio.sleep(_WARM_UP_S)
    watch = Watch(Target(url="", watch={"relay": [relay_pid]}))
    await asyncio.sleep(_MEASURED_S)
    cores = watch.stop(count * _MEASURED_S, "status", 1e6)["cpu_cores"]
    held = rss_bytes(relay)
    reporting.cancel()
    lost = sum(node.lost for node in nodes)
    for node in nodes:
        node.close()
    return {
        "nodes_cores": cores,
        "kib_per_node": (held - before) / count / 1024,
        "nodes_lost": lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the relay's data folder")
    parser.add_argument("--relay-pid", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    allow_many_files()
    print(json.dumps(uvloop.run(measure(args.data, args.relay_pid, args.count))))


if __name__ == "__main__":
    main()
