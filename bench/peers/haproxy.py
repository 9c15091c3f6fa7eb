"""haproxy twice: a caller's TLS hop, a second TLS hop, then plain HTTP. No tunnel: the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.clients import Target
from bench.place import Place, find_program, free_port
from bench.procstat import most_streams

NAME: Final = "haproxy two hops"


def missing() -> str | None:
    """Why it can't run here."""
    return None if find_program("haproxy") else "haproxy is not installed (Debian: haproxy)"


def config(listen: int, pem: Path, server: str) -> str:
    """One hop: TLS on `listen`, forwarded to `server` (an address with its options).

    One thread, as each of our processes has; more of them cost it more CPU per event, not less.
    """
    return f"""global
    maxconn {most_streams()}
    nbthread 1
    tune.ssl.cachesize 20000
defaults
    mode http
    timeout connect 10s
    timeout client 300s
    timeout server 300s
    http-reuse always
frontend public
    bind 127.0.0.1:{listen} ssl crt {pem} alpn h2,http/1.1
    default_backend behind
backend behind
    server next {server}
"""


def start(place: Place) -> Target:
    """Two processes, as relay and node are two."""
    program = find_program("haproxy") or "haproxy"
    outer, inner = free_port(), free_port()
    pem, cert = place.certificate.both, place.certificate.cert
    near = place.write("inner.cfg", config(inner, pem, f"127.0.0.1:{place.origin_port}"))
    onward = f"127.0.0.1:{inner} ssl verify required ca-file {cert} alpn http/1.1"
    far = place.write("outer.cfg", config(outer, pem, onward))
    pids = {
        "agent": [place.spawn("inner", [program, "-db", "-f", str(near)])],
        "public": [place.spawn("outer", [program, "-db", "-f", str(far)])],
    }
    place.wait_for_port("inner", inner)
    place.wait_for_port("outer", outer)
    return Target(url=f"https://127.0.0.1:{outer}", ca=str(cert), watch=pids)
