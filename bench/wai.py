"""Our path: relay and node, started with the `wai` command."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.clients import Target
from bench.place import Place, free_port
from bench.procstat import cpu_s

NAME: Final = "wai"
SLOTS: Final = 4096  # as many as can be configured; no load has more requests at once
_COMMAND_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Started:
    """Our path, and the relay's data folder."""

    target: Target
    data: Path


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of wall time and of CPU time."""

    wall_s: float
    cpu_s: float


def wai_program() -> str:
    """Return the `wai` command beside the Python that runs this."""
    return str(Path(sys.executable).with_name("wai"))


def ask(*arguments: str) -> str:
    """Run one short `wai` command; return its output."""
    done = subprocess.run(
        [wai_program(), *arguments],
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"wai {' '.join(arguments)}: {done.stderr[-800:]}")
    return done.stdout


def start(place: Place, through: Callable[[int], str] | None = None) -> Started:
    """A relay, one node that serves the place's origin, and a key.

    `through` makes a forwarder to the relay's port, to stand for a long way between node and relay,
    and gives its HOST:PORT.
    """
    port = free_port()
    data = place.folder / "relay"
    command = [wai_program(), "relay", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    relay_pid = place.spawn("relay", command)
    place.wait_for_port("relay", port)
    key = json.loads(ask("key", "create", "bench", "--data", str(data), "--json"))["key"]
    target = Target(url=f"https://127.0.0.1:{port}", ca=str(data / "relay.crt"), key=key)

    invite = json.loads(ask("invite", "create", "--data", str(data), "--json"))["invite"]
    home = str(place.folder / "node")
    ask("node", "join", invite, "--data", home, "--name", "bench")
    command = [wai_program(), "node", "run", "--data", home]
    command += ["--upstream", f"http://127.0.0.1:{place.origin_port}"]
    if through is not None:
        command += ["--relay", through(port)]
    node_pid = place.spawn("node", command)
    place.wait_for("node", lambda: serves_model(target))
    # Else the relay learns how many the origin takes, and lets the rest wait meanwhile: what is
    # measured is the way there, not the line.
    server = f"openai@127.0.0.1:{place.origin_port}"
    ask("node", "slots", "bench", server, str(SLOTS), "--data", str(data))
    watched = replace(target, watch={"relay": [relay_pid], "node": [node_pid]})
    return Started(watched, data)


def restart(place: Place, started: Started) -> tuple[Took, Took]:
    """Stop relay and node of a place and start them again: what each took, to the open port and to
    the relay's list of models. (The node can't be asked for less: it serves nothing before.)"""
    place.stop()
    port = urlsplit(started.target.url).port
    assert port is not None
    command = [wai_program(), "relay", "--data", str(started.data)]
    relay = place.spawn("relay", [*command, "--listen", f"127.0.0.1:{port}"])
    relay_s = place.wait_for_port("relay", port)
    took = Took(relay_s, cpu_s([relay]))
    home = str(place.folder / "node")
    command = [wai_program(), "node", "run", "--data", home]
    node = place.spawn("node", [*command, "--upstream", f"http://127.0.0.1:{place.origin_port}"])
    node_s = place.wait_for("node", lambda: serves_model(started.target))
    return took, Took(node_s, cpu_s([node]))


def serves_model(target: Target) -> bool:
    """Return whether the relay lists the origin's model, so that the node is ready."""
    request = urllib.request.Request(
        f"{target.url}/v1/models", headers={"Authorization": f"Bearer {target.key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5, context=target.tls("http/1.1")) as answer:
            models = json.load(answer)["data"]
    except OSError:
        return False
    return any(model["id"] == target.model for model in models)


def help_took() -> Took:
    """Measure `wai --help`."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ask("--help")
    wall_s, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(wall_s, cpu)
