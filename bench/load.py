"""The load generator: one scenario against one target, figures as JSON on standard output.

A process of its own, so that its work is no part of what it measures: CPU time is read from /proc
for the processes named in the target. Run it by hand as

    python -m bench.load streams --target '{"url": "http://127.0.0.1:9000"}' --streams 200 --rate 20
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import Final

import uvloop

from bench.clients import Client, H1Client, Target, alpn_of, connect
from bench.procstat import allow_many_files, cpu_s, family, rss_bytes
from bench.summary import Figures, spread_ms
from bench.wire import (
    DOWNLOAD_PATH,
    EVENT_END,
    STREAM_PATH,
    UPLOAD_CONTENT_TYPE,
    UPLOAD_PATH,
    UPLOAD_TAIL,
    Wish,
    chat_body,
    speech_body,
    stamps_ns,
    upload_lead,
)

_CONNECTING_AT_ONCE: Final = 32  # handshakes under way: more would only time each other out
_STREAMS_PER_H2: Final = 100  # what servers usually allow on one connection
_WARM_UP_S: Final = 0.6
_SETTLE_S: Final = 1.5  # until memory stands still after many streams opened or closed
_PROBE_CONNECTIONS: Final = 4
_UPLOAD_PIECE: Final = random.Random(1).randbytes(256 * 1024)
_UPLOAD_BYTES: Final = 60 << 20  # the relay refuses bodies over 64 MiB, unless told otherwise
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """The options of scenarios; each scenario uses some of them."""

    http: str
    streams: int
    rate: int
    seconds: float
    probes: float
    size: int
    fresh: bool


class Watch:
    """CPU time of the target's processes over a span."""

    def __init__(self, target: Target) -> None:
        self._families = {name: family(pids) for name, pids in target.watch.items()}
        self._before = {name: cpu_s(pids) for name, pids in self._families.items()}
        self._began = time.perf_counter()

    def stop(self, units: float, unit: str, scale: float) -> Figures:
        """CPU per unit, by process and in all (`scale`: 1e6 for µs), and the span's length."""
        wall_s = time.perf_counter() - self._began
        figures: Figures = {"wall_s": wall_s, f"{unit}s_per_s": units / wall_s}
        total_s = 0.0
        label = {1e6: "us", 1e3: "ms", 1.0: "s"}[scale]
        for name, pids in self._families.items():
            used_s = cpu_s(pids) - self._before[name]
            total_s += used_s
            if units:
                figures[f"cpu_{label}_per_{unit}_{name}"] = used_s / units * scale
        if units and self._families:
            figures[f"cpu_{label}_per_{unit}"] = total_s / units * scale
            figures["cpu_cores"] = total_s / wall_s
        return figures


class EventCounter:
    """Counts one stream's events, and times them while `Tally.timing` is set."""

    __slots__ = ("_newline", "_tally", "ended", "first")

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._newline = False  # whether the last piece ended in the first half of an event's end
        self.first = asyncio.get_running_loop().create_future()
        self.ended = asyncio.get_running_loop().create_future()

    def on_body(self, data: bytes) -> None:
        tally = self._tally
        if tally.timing:
            now_ns = time.monotonic_ns()
            for stamp in stamps_ns(data):
                tally.latencies_ns.append(now_ns - stamp)
        if self._newline and data[:1] == b"\n":
            data = b"\n" + data
        tally.events += data.count(EVENT_END)
        self._newline = data[-1:] == b"\n" and data[-2:] != EVENT_END
        if not self.first.done():
            self.first.set_result(time.monotonic_ns())

    def on_end(self, good: bool) -> None:
        if not good:
            self._tally.errors += 1
        if not self.first.done():
            self.first.set_result(0)
        if not self.ended.done():
            self.ended.set_result(good)


class Tally:
    """The figures of many streams together."""

    def __init__(self) -> None:
        self.events = 0
        self.errors = 0
        self.timing = False
        self.latencies_ns: list[int] = []


class ByteCounter:
    """Receives one bulk or small answer."""

    __slots__ = ("done", "received")

    def __init__(self) -> None:
        self.received = 0
        self.done = asyncio.get_running_loop().create_future()

    def on_body(self, data: bytes) -> None:
        self.received += len(data)

    def on_end(self, good: bool) -> None:
        if not self.done.done():
            self.done.set_result(good)


async def _connect_many(target: Target, options: Options, count: int) -> list[Client]:
    tls = target.tls(alpn_of(options.http))
    gate = asyncio.Semaphore(_CONNECTING_AT_ONCE)

    async def one() -> Client:
        async with gate:
            return await connect(target, options.http, tls)

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def _open_streams(
    target: Target, options: Options, wish: Wish, tally: Tally
) -> tuple[list[Client], list[EventCounter]]:
    """`options.streams` streams, opened a few at a time; returns once each has its first event."""
    per_connection = _STREAMS_PER_H2 if options.http == "h2" else 1
    clients = await _connect_many(target, options, -(-options.streams // per_connection))
    body = chat_body(wish, stream=True, model=target.model)
    gate = asyncio.Semaphore(_CONNECTING_AT_ONCE * 4)

    async def one(number: int) -> EventCounter:
        async with gate:
            counter = EventCounter(tally)
            clients[number // per_connection].request(STREAM_PATH, body, counter)
            await counter.first
            return counter

    return clients, list(await asyncio.gather(*(one(n) for n in range(options.streams))))


async def _probe(target: Target, options: Options, until_s: float, firsts_ns: list[int]) -> int:
    """Short requests beside the streams, at uneven moments: how long until the first event?

    Returns how many failed. They are few, so that they add no cost worth counting.
    """
    idle = await _connect_many(target, options, _PROBE_CONNECTIONS)
    body = chat_body(Wish(events=1), stream=True, model=target.model)
    failed = 0
    clock = asyncio.get_running_loop().time

    async def one(client: Client) -> None:
        nonlocal failed
        counter = EventCounter(Tally())
        began_ns = time.monotonic_ns()
        client.request(STREAM_PATH, body, counter)
        first_ns = await counter.first
        if await counter.ended and first_ns:
            firsts_ns.append(first_ns - began_ns)
        else:
            failed += 1
        idle.append(client)

    async with asyncio.TaskGroup() as probes:
        while clock() < until_s:
            if idle:
                probes.create_task(one(idle.pop()))
            await asyncio.sleep(random.expovariate(options.probes))
    for client in idle:
        client.close()
    return failed


async def measure_streams(target: Target, options: Options) -> Figures:
    """Streams of `rate` events/s each (0: flat out): CPU per event, latency, time to the first."""
    tally = Tally()
    clients, _ = await _open_streams(target, options, Wish(rate=options.rate), tally)
    await asyncio.sleep(_WARM_UP_S)
    firsts_ns: list[int] = []
    until_s = asyncio.get_running_loop().time() + options.seconds
    own_s = time.process_time()
    watch = Watch(target)
    tally.events, tally.timing = 0, options.rate > 0
    failed = 0
    if options.probes:
        failed = await _probe(target, options, until_s, firsts_ns)
    else:
        await asyncio.sleep(options.seconds)
    tally.timing = False
    figures = watch.stop(tally.events, "event", 1e6)
    figures["load_cores"] = (time.process_time() - own_s) / figures["wall_s"]
    if options.rate:
        figures |= spread_ms("event", tally.latencies_ns)
    if firsts_ns:
        figures |= spread_ms("first", firsts_ns)
    figures["errors"] = tally.errors + failed
    for client in clients:
        client.close()
    return figures


async def measure_requests(target: Target, options: Options) -> Figures:
    """Small POSTs, `streams` at a time, kept alive or each on a connection of its own (`fresh`)."""
    tls = target.tls(alpn_of(options.http))
    body = chat_body(Wish(), stream=False, model=target.model)
    took_ns: list[int] = []
    failed = 0
    loop = asyncio.get_running_loop()
    clients = [] if options.fresh else await _connect_many(target, options, _lanes(options))
    began_s = loop.time() + _WARM_UP_S
    until_s = began_s + options.seconds

    async def lane(number: int) -> None:
        nonlocal failed
        kept = clients[number % len(clients)] if clients else None
        while loop.time() < until_s:
            began_ns = time.monotonic_ns()
            client = kept or await connect(target, options.http, tls)
            answer = ByteCounter()
            client.request(STREAM_PATH, body, answer)
            good = await answer.done
            if kept is None:
                client.close()
            elif not client.open:  # closed between two requests: some servers count them
                kept = await connect(target, options.http, tls)
                clients.append(kept)
            if not good:
                failed += 1
            elif loop.time() >= began_s:
                took_ns.append(time.monotonic_ns() - began_ns)

    async with asyncio.TaskGroup() as lanes:
        for number in range(options.streams):
            lanes.create_task(lane(number))
        await asyncio.sleep(_WARM_UP_S)
        watch = Watch(target)
    figures = watch.stop(len(took_ns), "request", 1e3) | spread_ms("request", took_ns)
    for client in clients:
        client.close()
    return figures | {"errors": failed}


def _lanes(options: Options) -> int:
    """Return how many connections `streams` concurrent requests need."""
    return 1 if options.http == "h2" else options.streams


async def measure_download(target: Target, options: Options) -> Figures:
    """One answer of `size` bytes: CPU seconds per GiB and MB/s."""
    (client,) = await _connect_many(target, options, 1)
    return await _timed_bulk(target, lambda: _download(target, client, options.size), client)


async def measure_upload(target: Target, options: Options) -> Figures:
    """Uploads of `size` bytes together, one after another: CPU seconds per GiB and MB/s."""
    (client,) = await _connect_many(target, options, 1)

    async def upload_all() -> int:
        sent = 0
        while sent < options.size:
            size = min(_UPLOAD_BYTES, options.size - sent)
            if not await _upload(target, client, size):
                return 0
            sent += size
        return sent

    return await _timed_bulk(target, upload_all, client)


async def _timed_bulk(
    target: Target, move: Callable[[], Awaitable[int]], client: Client
) -> Figures:
    watch = Watch(target)
    moved = await move()
    figures = watch.stop(moved / _GIB, "gib", 1.0)
    client.close()
    return figures | {
        "mb_per_s": figures.pop("gibs_per_s") * _GIB / 1e6,
        "errors": float(not moved),
    }


async def _download(target: Target, client: Client, size: int) -> int:
    answer = ByteCounter()
    client.request(DOWNLOAD_PATH, speech_body(Wish(bytes=size), target.model), answer)
    good = await answer.done
    return answer.received if good and answer.received == size else 0


async def _upload(target: Target, client: Client, size: int) -> int:
    if not isinstance(client, H1Client):
        raise ValueError("bulk uploads are measured over HTTP/1.1")
    answer = ByteCounter()
    lead = upload_lead(target.model)
    client.request(
        UPLOAD_PATH,
        lead,
        answer,
        content_type=UPLOAD_CONTENT_TYPE,
        length=len(lead) + size + len(UPLOAD_TAIL),
    )
    left = size
    while left and not answer.done.done():
        piece = _UPLOAD_PIECE[:left]
        await client.send_body(piece)
        left -= len(piece)
    if not answer.done.done():
        await client.send_body(UPLOAD_TAIL)
    return size if await answer.done else 0


async def measure_beside(target: Target, options: Options) -> Figures:
    """Events of paced streams while bulk downloads share the path (`size` 0: while none do)."""
    tally = Tally()
    clients, _ = await _open_streams(target, options, Wish(rate=options.rate), tally)
    async with AsyncExitStack() as stack:
        pulled = Pull()
        if options.size:
            stack.push_async_callback(await pulled.start(target, options.size))
        await asyncio.sleep(_WARM_UP_S)
        tally.timing, tally.events = True, 0
        watch, moved = Watch(target), pulled.bytes
        await asyncio.sleep(options.seconds)
        tally.timing = False
        figures = watch.stop(tally.events, "event", 1e6) | spread_ms("event", tally.latencies_ns)
        figures["mb_per_s"] = (pulled.bytes - moved) / figures["wall_s"] / 1e6
    for client in clients:
        client.close()
    return figures | {"errors": tally.errors}


class Pull:
    """Bulk downloads by a process of their own, so that timing events is not held up by them."""

    def __init__(self) -> None:
        self.bytes = 0

    async def start(self, target: Target, size: int) -> Callable[[], Awaitable[None]]:
        """Begin; return the function that ends it."""
        arguments = ["-m", "bench.load", "pull", "--size", str(size)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            "--target",
            json.dumps(asdict(target)),
            stdout=asyncio.subprocess.PIPE,
        )
        reading = asyncio.ensure_future(self._read(process))

        async def stop() -> None:
            process.kill()
            await process.wait()
            await reading

        return stop

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is not None:
            async for line in process.stdout:
                self.bytes = int(line)


async def pull_for_ever(target: Target, options: Options) -> Figures:
    """Download again and again; prints how many bytes have come, ten times a second."""
    (client,) = await _connect_many(target, options, 1)
    total = 0
    body = speech_body(Wish(bytes=options.size), target.model)
    while True:
        answer = ByteCounter()
        client.request(DOWNLOAD_PATH, body, answer)
        while not answer.done.done():
            await asyncio.wait([answer.done], timeout=0.1)
            print(total + answer.received, flush=True)
        total += answer.received
        if not answer.done.result():
            raise ConnectionError("a bulk download failed")


async def measure_idle(target: Target, options: Options) -> Figures:
    """`streams` held open and silent: resident memory for each, and what stays when they closed."""
    families = {name: family(pids) for name, pids in target.watch.items()}

    def resident() -> dict[str, int]:
        return {name: rss_bytes(pids) for name, pids in families.items()}

    warm, _ = await _open_streams(target, replace(options, streams=20), Wish(hold=1), Tally())
    # memory for code and pools of the first requests must not count as the streams'
    for client in warm:
        client.close()
    await asyncio.sleep(_SETTLE_S)
    before = resident()
    began_s = time.perf_counter()
    tally = Tally()
    clients, _ = await _open_streams(target, options, Wish(hold=1), tally)
    opening_s = time.perf_counter() - began_s
    await asyncio.sleep(_SETTLE_S)
    held = resident()
    watch = Watch(target)
    await asyncio.sleep(_SETTLE_S)
    cores = watch.stop(1, "span", 1.0).get("cpu_cores", 0.0)
    errors = tally.errors
    for client in clients:
        client.close()
    await asyncio.sleep(_SETTLE_S * 2)
    after = resident()
    figures: Figures = {"errors": errors, "opening_s": opening_s, "cpu_cores": cores}
    for name in families:
        figures[f"kib_per_stream_{name}"] = (held[name] - before[name]) / options.streams / 1024
    figures["kib_per_stream"] = (sum(held.values()) - sum(before.values())) / options.streams / 1024
    figures["mib_before"] = sum(before.values()) / (1 << 20)
    figures["mib_held"] = sum(held.values()) / (1 << 20)
    figures["mib_after"] = sum(after.values()) / (1 << 20)
    return figures


SCENARIOS: Final[dict[str, Callable[[Target, Options], Awaitable[Figures]]]] = {
    "streams": measure_streams,
    "requests": measure_requests,
    "download": measure_download,
    "upload": measure_upload,
    "beside": measure_beside,
    "idle": measure_idle,
    "pull": pull_for_ever,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--target", type=json.loads, required=True, help="a Target as JSON")
    parser.add_argument("--http", choices=("h1", "h2"), default="h1")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--probes", type=float, default=0.0, help="first-token probes per second")
    parser.add_argument("--size", type=int, default=_GIB)
    parser.add_argument("--fresh", action="store_true", help="a new connection for each request")
    given = vars(parser.parse_args())
    scenario, target = given.pop("scenario"), Target(**given.pop("target"))
    allow_many_files()
    gc.disable()  # no pause of our own in the latencies; a run is short
    figures = uvloop.run(_run(scenario, target, Options(**given)))
    print(json.dumps(figures))


async def _run(scenario: str, target: Target, options: Options) -> Figures:
    return await SCENARIOS[scenario](target, options)


if __name__ == "__main__":
    main()
