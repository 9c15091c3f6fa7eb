"""Large request bodies: how long a photo takes to the model's server, beside a plain proxy's time.

`python -m bench.bodies` starts an origin, our relay and node, and haproxy twice (two TLS hops), and
sends each a chat completion with one picture. With `--at-once N` N callers send one each at the
same time through ours, and the relay's largest memory is printed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from pathlib import Path
from typing import Final

from bench import wai
from bench.clients import Target
from bench.peers import haproxy
from bench.place import Place
from bench.wire import MODEL, STREAM_PATH

MIB: Final = 1 << 20
TRIES: Final = 7
SAMPLE_S: Final = 0.02


def photo_body(size: int) -> bytes:
    """A request of `size` bytes with one picture, as the SDKs send it: the model comes last."""
    picture = b64encode(os.urandom(size // 4 * 3)).decode()
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    return json.dumps({"messages": [{"role": "user", "content": content}], "model": MODEL}).encode()


def send(target: Target, body: bytes) -> float:
    """Send `body` over a new connection; return the seconds until the answer was there."""
    host, port = target.address
    connection = http.client.HTTPSConnection(host, port, context=target.tls("http/1.1"))
    connection.connect()
    began_s = time.perf_counter()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {target.key}"}
    connection.request("POST", STREAM_PATH, body, headers)
    answer = connection.getresponse()
    said = answer.read()
    took_s = time.perf_counter() - began_s
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {said[:200]!r}")
    return took_s


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """Return how much memory a process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def at_once(target: Target, body: bytes, count: int) -> None:
    """Send `count` bodies at the same time; print how they went and what the relay took."""
    (relay_pid,) = target.watch["relay"]
    took: list[float] = []
    failed: list[str] = []

    def one() -> None:
        try:
            took.append(send(target, body))
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failed.append(str(error))

    before = resident_bytes(relay_pid)
    callers = [threading.Thread(target=one) for _ in range(count)]
    began_s = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    all_s = time.perf_counter() - began_s
    peak = resident_bytes(relay_pid, "VmHWM")
    print(
        f"{count} at once of {len(body) / MIB:.1f} MiB: {len(took)} answered, {len(failed)} failed,"
        f" {all_s:.1f} s, the relay's memory {before // MIB} -> at most {peak // MIB} MiB"
    )
    for why in sorted(set(failed)):
        print("  ", why)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=27.0, help="the body's size")
    parser.add_argument("--at-once", type=int, default=0, help="also send so many together")
    parser.add_argument("--at-once-mib", type=float, default=6.7, help="the size of each of these")
    args = parser.parse_args()
    body = photo_body(int(args.mib * MIB))
    origin = subprocess.Popen(
        [sys.executable, "-m", "bench.origin"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert origin.stdout is not None
        origin_port = int(origin.stdout.readline().split()[1])
        with tempfile.TemporaryDirectory() as folder:
            figures: dict[str, float] = {}
            if (why := haproxy.missing()) is None:
                with Place(Path(folder) / "haproxy", origin_port) as place:
                    figures[haproxy.NAME] = measure(haproxy.start(place), body)
            else:
                print(why)
            with Place(Path(folder) / "wai", origin_port) as place:
                target = wai.start(place).target
                figures[wai.NAME] = measure(target, body)
                if args.at_once:
                    at_once(target, photo_body(int(args.at_once_mib * MIB)), args.at_once)
            for name, took_s in figures.items():
                rate = len(body) / MIB / took_s
                print(f"{name:20} {took_s * 1000:7.0f} ms  {rate:6.0f} MiB/s")
    finally:
        origin.terminate()
        origin.wait()


def measure(target: Target, body: bytes) -> float:
    """The median of some tries, after one that nobody counts."""
    send(target, body)
    return statistics.median(send(target, body) for _ in range(TRIES))


if __name__ == "__main__":
    main()
