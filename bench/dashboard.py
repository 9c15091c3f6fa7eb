"""Measure the dashboard's cost: the relay's CPU with and without a reader of its live feed, and the
pages' frames and openings, with 50 nodes, 500 running and 100,000 finished requests, 10,000 keys.

The relay and its TLS are real; the nodes speak the real session in this process and answer each
request with a token now and then, for ever. The CPU is the relay's, in windows that alternate, so
that what else runs on the machine falls on both. Run it: `python -m bench.dashboard [--page]`, or
`make bench-dashboard`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import uvloop

from bench.clients import Client, Target, connect
from bench.dashboard_page import measure_pages
from bench.nodes import BenchNode, make_invites
from bench.place import Place, free_port
from bench.procstat import allow_many_files, cpu_s, family
from bench.wai import ask, wai_program
from wai_protocol.events import Event, StreamOpened
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.access.keys import KeyRing
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.storage import SqliteStore
from wai_relay.usage.rollups import writes_for
from wai_transport.folder import DataFolder

MODEL: Final = "bench-model"
_HEADERS: Final = [(b"content-type", b"text/event-stream")]
_TOKEN: Final = b'data: {"choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'
_KEYS_AT_ONCE: Final = 500
_FINISHED_AT_ONCE: Final = 2000
_FINISHED_OVER_S: Final = 7 * 86_400
_CALLERS_AT_ONCE: Final = 20
_STATUS_EVERY_S: Final = 1.0
_WARM_UP_S: Final = 4.0


class AnsweringNode(BenchNode):
    """A node that begins each answer at once and sends a token when it is told to."""

    def __init__(self, number: int, slots: int) -> None:
        super().__init__(number)
        self._slots = slots
        self.streams: set[int] = set()
        self._turn = 0

    def report(self) -> None:
        """A status that differs from the last, as a node at work tells each second."""
        self._turn += 1
        model = ModelStatus(
            *(MODEL, "http://127.0.0.1:8080"),
            context_tokens=4096,
            slots_total=self._slots,
            slots_busy=len(self.streams),
            decode_tps=50.0 + self._turn % 7,
        )
        if self.session is not None:
            self.session.core.send_status(NodeStatus((model,), version="bench"))
            self.session.core.emit("hardware", self._machine())
            self.session.flush()

    def _machine(self) -> dict[str, Any]:
        """Its load, as a node tells it."""
        use = (13 * self._turn + 7 * len(self.streams)) % 100
        gpu = {"name": "NVIDIA H200", "use": use, "used": use << 30, "total": 141 << 30}
        return {
            "cpu": use / 2,
            "ram_used": 40 << 30,
            "ram_total": 128 << 30,
            "gpus": [{**gpu, "temperature": 40 + use / 4, "power": 300, "power_limit": 700}] * 2,
        }

    def speak(self) -> None:
        """A token on each stream."""
        assert self.session is not None
        for stream in self.streams:
            self.session.core.send_data(stream, _TOKEN)
            self.session.flush()

    def _ignore(self, event: Event) -> None:
        if isinstance(event, StreamOpened):
            assert self.session is not None
            self.session.core.send_headers(event.stream, 200, _HEADERS)
            self.session.flush()
            self.streams.add(event.stream)


class _Caller:
    """Reads an answer and forgets it."""

    def on_body(self, data: bytes) -> None:
        """Ignore the data."""

    def on_end(self, good: bool) -> None:
        """The load is over, or the relay broke: the count of running requests says it."""


class Reader:
    """A reader of the live feed, with the number of bytes that it received."""

    def __init__(self, target: Target, token: str) -> None:
        self._target = target
        self._token = token
        self.bytes = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reader:
        self._task = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _read(self) -> None:
        host, port = self._target.address
        reader, writer = await asyncio.open_connection(
            host, port, ssl=self._target.tls("http/1.1"), server_hostname="localhost"
        )
        try:
            writer.write(
                f"GET /admin/v1/events HTTP/1.1\r\nHost: {self._target.authority}\r\n"
                f"Authorization: Bearer {self._token}\r\n\r\n".encode()
            )
            while data := await reader.read(1 << 16):
                self.bytes += len(data)
        finally:
            writer.close()


async def make_past(folder: DataFolder, count: int, finished: int) -> str:
    """Fill the store of a relay that does not run yet: `count` API keys, of which it returns one
    secret, and `finished` requests."""
    store = SqliteStore.open(folder.path / "relay.db")
    keys = await KeyRing.load(store)
    secret = ""
    for begin in range(0, count, _KEYS_AT_ONCE):
        names = [f"app-{n}" for n in range(begin, min(count, begin + _KEYS_AT_ONCE))]
        made = await asyncio.gather(*(keys.create(name) for name in names))
        secret = made[-1][1]
    chance = random.Random(1)
    begun = time.time() - _FINISHED_OVER_S
    ids = [key.id for key in (await keys.list())[:50]]
    for begin in range(0, finished, _FINISHED_AT_ONCE):
        numbers = range(begin, min(finished, begin + _FINISHED_AT_ONCE))
        past = [
            _finished(chance, number, begun + number * _FINISHED_OVER_S / finished, ids)
            for number in numbers
        ]
        await store.write(*writes_for((record, record.model) for record in past))
    await store.close()
    return secret


def _finished(chance: random.Random, number: int, at: float, keys: list[str]) -> RequestRecord:
    """A request of the past; every 50th failed."""
    ttft_ms, completion = chance.uniform(50, 8000), chance.randrange(20, 900)
    failed = number % 50 == 0
    return RequestRecord(
        *(f"req_{number:024x}", at, "POST", "/v1/chat/completions", chance.choice(keys)),
        model=MODEL,
        served_model=MODEL,
        node=f"bench-{chance.randrange(50)}",
        status=502 if failed else 200,
        fault="upstream_broke" if failed else "",
        reason="idle",
        attempts=1,
        tokens=TokenCounts(chance.randrange(50, 4000), 0, completion, exact=True),
        ttft_ms=None if failed else ttft_ms,
        duration_ms=ttft_ms + completion * 15,
        stream=True,
    )


@asynccontextmanager
async def load(target: Target, data: Path, args: argparse.Namespace) -> AsyncIterator[None]:
    """Run the nodes and callers."""
    slots = -(-args.requests // args.nodes) + 1
    nodes = [AnsweringNode(number, slots) for number in range(args.nodes)]
    texts = await asyncio.to_thread(lambda: list(make_invites(data, [n.name for n in nodes])))
    for node, text in zip(nodes, texts, strict=True):
        await node.join(text)
        node.report()
    await asyncio.sleep(_STATUS_EVERY_S)
    gate = asyncio.Semaphore(_CALLERS_AT_ONCE)
    tls = target.tls("http/1.1")
    body = json.dumps(
        {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    ).encode()

    async def call() -> Client:
        async with gate:
            client = await connect(target, "h1", tls)
            client.request("/v1/chat/completions", body, _Caller())
            return client

    async def speak() -> None:
        while True:
            for node in nodes:
                node.speak()
                await asyncio.sleep(1.0 / args.tokens_per_s / args.nodes)

    async def report() -> None:
        while True:
            for node in nodes:
                node.report()
                await asyncio.sleep(_STATUS_EVERY_S / args.nodes)

    working = [asyncio.ensure_future(work) for work in (speak(), report())]
    callers = await asyncio.gather(*(call() for _ in range(args.requests)))
    try:
        await asyncio.sleep(_WARM_UP_S)
        running = sum(len(node.streams) for node in nodes)
        if running != args.requests:
            raise RuntimeError(f"{running} of {args.requests} requests run")
        yield
    finally:
        for work in working:
            work.cancel()
        for caller in callers:
            caller.close()
        for node in nodes:
            node.close()


async def relay_share(relay: list[int], seconds: float) -> float:
    """Return the relay's CPU as a share of one core."""
    cpu, began = cpu_s(relay), time.monotonic()
    await asyncio.sleep(seconds)
    return (cpu_s(relay) - cpu) / (time.monotonic() - began)


async def measure_feed(
    target: Target, token: str, relay: list[int], args: argparse.Namespace
) -> dict[str, Any]:
    """Measure windows without and with a reader, in turn."""
    without, with_reader, read = [], [], 0
    for _ in range(args.rounds):
        without.append(await relay_share(relay, args.window_s))
        async with Reader(target, token) as reader:
            await asyncio.sleep(1.0)  # the whole comes once, and is no part of the steady cost
            begun = reader.bytes
            with_reader.append(await relay_share(relay, args.window_s))
            read += reader.bytes - begun
    differences = [b - a for a, b in zip(without, with_reader, strict=True)]
    return {
        "relay_percent_without": [round(share * 100, 2) for share in without],
        "relay_percent_with": [round(share * 100, 2) for share in with_reader],
        "feed_percent": round(statistics.median(differences) * 100, 2),
        "feed_kib_per_s": round(read / args.rounds / args.window_s / 1024, 1),
    }


async def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    data = folder / "relay"
    secret = await make_past(DataFolder.open(data), args.keys, args.finished)
    with Place(folder, origin_port=0) as place:
        port = free_port()
        command = [wai_program(), "relay", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
        pid = place.spawn("relay", command)
        await asyncio.to_thread(place.wait_for, "relay", (data / "relay.json").exists)
        target = Target(
            url=f"https://127.0.0.1:{port}", ca=str(data / "relay.crt"), key=secret, model=MODEL
        )
        token = (data / "admin.token").read_text().strip()
        figures: dict[str, Any] = {"nodes": args.nodes, "requests": args.requests}
        figures |= {"keys": args.keys, "finished": args.finished}
        figures |= {"tokens_per_s": args.tokens_per_s * args.requests}
        async with load(target, data, args):
            figures |= await measure_feed(target, token, family([pid]), args)
            if args.page:
                figures["pages"] = await measure_pages(
                    target.url, token, args.window_s, args.screens
                )
            if args.look:
                print(ask("top", "--data", str(data)), file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--screens", type=Path, help="a folder for a picture of each page")
    parser.add_argument("--tokens-per-s", type=float, default=2.0, help="of each request")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--window-s", type=float, default=8.0)
    parser.add_argument("--page", action="store_true", help="also the page, in a Chromium")
    parser.add_argument("--look", action="store_true", help="also print what `wai top` shows")
    args = parser.parse_args()
    allow_many_files()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(uvloop.run(measure(Path(folder), args)), indent=2))


if __name__ == "__main__":
    main()
