"""viaduct (Python, raw TCP, one pooled TLS connection per caller's connection), nginx in front."""

from __future__ import annotations

from typing import Final

from bench.clients import Target
from bench.peers import nginx
from bench.peers.package import program_path, why_not_installed
from bench.place import Place, free_port

NAME: Final = "viaduct + nginx"
_NAME: Final = "gentle-otter"  # the tunnel's subdomain
_MAX_CONNECTIONS: Final = 20_000  # its default of 128 would end the comparison at 128 streams


def missing() -> str | None:
    """Why it can't run here; installs it where it can."""
    return nginx.missing() or why_not_installed("viaduct", "viaduct-sh==1.5.4", "viaductd")


def start(place: Place) -> Target:
    """viaductd, one client, and nginx for the callers' TLS."""
    control, plain, public = free_port(), free_port(), free_port()
    cert, key = place.certificate.cert, place.certificate.key
    server = [program_path("viaduct", "viaductd"), "--tunnel-port", str(control)]
    server += ["--public-port", str(plain), "--tls-cert", str(cert), "--tls-key", str(key)]
    server += ["--max-conns-per-tunnel", str(_MAX_CONNECTIONS)]
    pids = {"public": [place.spawn("server", server)]}
    place.wait_for_port("server", control)
    client = [program_path("viaduct", "viaduct"), "http", str(place.origin_port), "--tls"]
    client += ["--server", f"localhost:{control}", "--tls-ca", str(cert), "--name", _NAME]
    home = {"HOME": str(place.folder), "XDG_CONFIG_HOME": str(place.folder), "COLUMNS": "200"}
    pids["agent"] = [place.spawn("client", client, home)]
    place.wait_for("client", lambda: _NAME in place.log("client"))
    upstream = f"http://127.0.0.1:{plain}"
    pids["nginx"] = [nginx.spawn(place, "nginx", public, upstream, host=f"{_NAME}.localhost")]
    return Target(url=f"https://127.0.0.1:{public}", ca=str(cert), watch=pids)
