"""chisel (Go, SSH over WebSocket over TLS) with nginx in front, if it is on PATH."""

from __future__ import annotations

from typing import Final

from bench.clients import Target
from bench.peers import nginx
from bench.place import Place, find_program, free_port

NAME: Final = "chisel + nginx"


def missing() -> str | None:
    """Why it can't run here."""
    return nginx.missing() if find_program("chisel") else "chisel is not on PATH"


def start(place: Place) -> Target:
    """Server, client with a reverse tunnel, and nginx for the callers' TLS."""
    program = find_program("chisel") or "chisel"
    control, inner, public = free_port(), free_port(), free_port()
    cert, key = place.certificate.cert, place.certificate.key
    server = [program, "server", "--host", "127.0.0.1", "--port", str(control), "--reverse"]
    server += ["--tls-cert", str(cert), "--tls-key", str(key)]
    pids = {"public": [place.spawn("server", server)]}
    place.wait_for_port("server", control)
    client = [program, "client", "--tls-ca", str(cert), f"https://localhost:{control}"]
    client += [f"R:127.0.0.1:{inner}:127.0.0.1:{place.origin_port}"]
    pids["agent"] = [place.spawn("client", client)]
    place.wait_for_port("client", inner)
    pids["nginx"] = [nginx.spawn(place, "nginx", public, f"http://127.0.0.1:{inner}")]
    return Target(url=f"https://127.0.0.1:{public}", ca=str(cert), watch=pids)
