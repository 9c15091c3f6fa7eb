"""Several relays against one: what sharing a database costs callers and processors.

    python -m bench.relays            three rounds, interleaved, four minutes

One relay with SQLite, one with PostgreSQL, and three with PostgreSQL get the same streams, spread
over the relays; of small requests each relay gets as many at a time, so that each does as much. All
run on this machine, so that three relays have no more cores than one: what is shown is cost, not
capacity.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench import wai
from bench.clients import Target
from bench.place import Place, free_port
from bench.procstat import allow_many_files
from tests.harness.postgres import PostgresServer
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.target import local_target

RELAYS: Final = 3
STREAMS: Final = 60
REVOCATIONS: Final = 20
_POLL_S: Final = 0.002
_LOAD_TIMEOUT_S: Final = 60
_KINDS: Final = ("SQLite, one relay", "PostgreSQL, one relay", f"PostgreSQL, {RELAYS} relays")
# More than any load here asks for: the relay holds a share and asks nobody.
_GENEROUS: Final = {"rpm": 10_000_000, "tpm": 100_000_000_000, "concurrency": 4096}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Some relays with one node; a target for each relay, and their data folders."""

    targets: list[Target]
    data: list[Path]
    node_pid: int
    server: PostgresServer | None


@contextmanager
def fleet(folder: Path, origin_port: int, relays: int, *, shared: bool) -> Iterator[Fleet]:
    """Start `relays` relays, with PostgreSQL if `shared`, and a node that is ready at all."""
    with ExitStack() as ending:
        server = ending.enter_context(PostgresServer()) if shared else None
        place = ending.enter_context(Place(folder, origin_port))
        database = ["--database", server.create_database("fleet")] if server is not None else []
        targets, data = [], []
        for number in range(relays):
            port, own = free_port(), folder / f"relay{number}"
            command = [wai.wai_program(), "relay", "--data", str(own), *database]
            pid = place.spawn(f"relay{number}", [*command, "--listen", f"127.0.0.1:{port}"])
            place.wait_for(f"relay{number}", (own / "relay.json").exists)
            target = Target(f"https://127.0.0.1:{port}", str(own / "relay.crt"))
            targets.append(replace(target, watch={"relay": [pid]}))
            data.append(own)
        key = _admin(data[0], "post", "/keys", {"name": "bench"})["key"]
        targets = [replace(target, key=key) for target in targets]
        invite = _admin(data[0], "post", "/invites")["invite"]
        home = str(folder / "node")
        wai.ask("node", "join", invite, "--data", home, "--name", "bench")
        command = [wai.wai_program(), "node", "run", "--data", home]
        node = place.spawn("node", [*command, "--upstream", f"http://127.0.0.1:{origin_port}"])
        for target in targets:
            place.wait_for("node", lambda target=target: wai.serves_model(target))  # type: ignore[misc]
        upstream = f"openai@127.0.0.1:{origin_port}"
        _admin(data[0], "patch", "/nodes/bench", {"slots": {upstream: wai.SLOTS}})
        yield Fleet(targets, data, node, server)


def _admin(data: Path, method: str, path: str, *body: dict[str, Any]) -> Any:
    with AdminClient(local_target(data)) as relay:
        return getattr(relay, method)(path, *body)


def load(on: Fleet, *arguments: str, streams: int) -> dict[str, float]:
    """Load all relays at once, each with its share; figures of all together.

    The first generator watches all processes; it makes one request of as many as there are relays.
    """
    count = len(on.targets)
    watch = {"relay": [pid for target in on.targets for pid in target.watch["relay"]]}
    watch["node"] = [on.node_pid]
    if on.server is not None:
        watch["postgres"] = [on.server.pid]
    running = []
    for number, target in enumerate(on.targets):
        watched = replace(target, watch={} if number else watch)
        command = [sys.executable, "-m", "bench.load", arguments[0], "--target"]
        command += [json.dumps(asdict(watched)), "--streams", str(streams // count)]
        running.append(subprocess.Popen([*command, *arguments[1:]], stdout=subprocess.PIPE))
    told = [json.loads(one.communicate(timeout=_LOAD_TIMEOUT_S)[0]) for one in running]
    figures = {name: told[0][name] / count for name in told[0] if name.startswith("cpu_")}
    figures["errors"] = sum(one["errors"] for one in told)
    for name in ("first_p50_ms", "first_p99_ms", "event_p50_ms", "request_p99_ms"):
        if name in told[0]:
            figures[name] = statistics.mean(one[name] for one in told)
    for name in ("requests_per_s", "events_per_s"):
        if name in told[0]:
            figures[name] = sum(one[name] for one in told)
    return figures


def transactions(on: Fleet) -> int:
    """How many transactions the relays' database has seen."""
    assert on.server is not None
    on.server.execute("SELECT pg_stat_force_next_flush()")
    time.sleep(1.2)  # a connection tells its counts once a second
    query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'fleet'"
    return int(on.server.execute(query)[0])


def finished(on: Fleet) -> int:
    """How many requests the relays have stored."""
    assert on.server is not None
    return int(on.server.execute("SELECT count(*) FROM usage_requests", "fleet")[0])


def per_request(on: Fleet, limits: dict[str, int]) -> float:
    """Transactions for each request of a key with these limits, all relays together, those that
    store what was used and the heartbeats included."""
    made = _admin(on.data[0], "post", "/keys", {"name": "limited", "limits": limits})
    targets = [replace(target, key=made["key"]) for target in on.targets]
    for target in targets:
        while not wai.serves_model(target):
            time.sleep(0.05)
    used = replace(on, targets=targets)
    load(used, "requests", "--seconds", "0.5", streams=3)  # the shares are taken
    before, requests = transactions(on), finished(on)
    load(used, "requests", "--seconds", "4", streams=9)
    return (transactions(on) - before) / (finished(on) - requests)


def revocation_ms(on: Fleet) -> list[float]:
    """How long after a revocation at the first relay the last one refuses the key, in ms."""
    took = []
    for _ in range(REVOCATIONS):
        made = _admin(on.data[0], "post", "/keys", {"name": "revoked"})
        far = replace(on.targets[-1], key=made["key"])
        while _status(far) != 200:
            time.sleep(_POLL_S)
        with AdminClient(local_target(on.data[0])) as relay:
            relay.get("/whoami")  # connected
            began = time.perf_counter()
            relay.delete(f"/keys/{made['id']}")
        while _status(far) != 401:
            time.sleep(_POLL_S)
        took.append((time.perf_counter() - began) * 1000)
    return took


def _status(target: Target) -> int:
    headers = {"Authorization": f"Bearer {target.key}"}
    request = urllib.request.Request(f"{target.url}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=target.tls("http/1.1")) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    allow_many_files()
    out: dict[str, Any] = {"rounds": {kind: [] for kind in _KINDS}}
    with tempfile.TemporaryDirectory(prefix="wai-relays-") as name, ExitStack() as ending:
        folder = Path(name)
        origin = ending.enter_context(Place(folder / "origin", 0))
        port = free_port()
        command = [sys.executable, "-m", "bench.origin", "--port", str(port)]
        origin.spawn("origin", command, {"PYTHONPATH": str(Path(__file__).parents[1])})
        origin.wait_for_port("origin", port)
        fleets = {
            kind: ending.enter_context(
                fleet(folder / str(number), port, RELAYS if number == 2 else 1, shared=number > 0)
            )
            for number, kind in enumerate(_KINDS)
        }
        for number in range(args.rounds):
            for kind, on in fleets.items():
                streams = load(
                    on,
                    *("streams", "--rate", "20", "--seconds", "4"),
                    *("--probes", str(20 / len(on.targets))),
                    streams=STREAMS,
                )
                posts = load(on, "requests", "--seconds", "3", streams=3 * len(on.targets))
                out["rounds"][kind].append({"streams": streams, "posts": posts})
                _say(number, kind, streams, posts)
        several = fleets[_KINDS[2]]
        out["transactions_per_request"] = {
            "no limits": per_request(several, {}),
            "generous limits": per_request(several, _GENEROUS),
        }
        took = revocation_ms(several)
        out["revocation_ms"] = {"p50": statistics.median(took), "most": max(took)}
    print(json.dumps({name: out[name] for name in out if name != "rounds"}, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(out, indent=1) + "\n")


def _say(number: int, kind: str, streams: dict[str, float], posts: dict[str, float]) -> None:
    cpu_ms = posts["cpu_ms_per_request_relay"] + posts["cpu_ms_per_request_node"]
    print(
        f"round {number + 1}, {kind}: first token p50 {streams['first_p50_ms']:.1f} ms,"
        f" p99 {streams['first_p99_ms']:.1f} ms; POST {posts['requests_per_s']:.0f}/s,"
        f" {cpu_ms:.3f} ms CPU of relay and node,"
        f" {posts.get('cpu_ms_per_request_postgres', 0.0):.3f} ms of PostgreSQL;"
        f" errors {streams['errors'] + posts['errors']:.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
