"""Two TLS processes of ours that do nothing but forward (`bench.floor`): what Python can't beat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from bench.clients import Target
from bench.place import Place, free_port

NAME: Final = "floor"


def missing() -> str | None:
    """Why it can't run here: it can."""
    return None


def start(place: Place) -> Target:
    """Start its relay, and its node beside it."""
    callers, nodes = free_port(), free_port()
    cert = str(place.certificate.cert)
    program = [sys.executable, "-m", "bench.floor"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    relay = [*program, "relay", "--callers", str(callers), "--nodes", str(nodes)]
    relay += ["--cert", cert, "--key", str(place.certificate.key)]
    pids = {"public": [place.spawn("relay", relay, environment)]}
    place.wait_for_port("relay", callers)
    node = [*program, "node", "--nodes", str(nodes), "--ca", cert]
    node += ["--origin", str(place.origin_port)]
    pids["agent"] = [place.spawn("node", node, environment)]
    place.wait_for("node", lambda: "dialled" in place.log("node"))
    return Target(url=f"https://127.0.0.1:{callers}", ca=cert, watch=pids)
