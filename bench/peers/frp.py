"""frp (Go) in its http mode with nginx in front, if frps and frpc are on PATH."""

from __future__ import annotations

from typing import Final

from bench.certificate import Certificate
from bench.clients import Target
from bench.peers import nginx
from bench.place import Place, find_program, free_port

NAME: Final = "frp http + nginx"
_HOST: Final = "bench.localhost"


def missing() -> str | None:
    """Why it can't run here."""
    if find_program("frps") is None or find_program("frpc") is None:
        return "frps and frpc are not on PATH"
    return nginx.missing()


def server_config(control: int, http: int, certificate: Certificate) -> str:
    """The public side: agents on `control`, plain HTTP on `http`."""
    return f"""bindAddr = "127.0.0.1"
bindPort = {control}
vhostHTTPPort = {http}
transport.tls.force = true
transport.tls.certFile = "{certificate.cert}"
transport.tls.keyFile = "{certificate.key}"
log.level = "warn"
"""


def client_config(control: int, origin: int, certificate: Certificate) -> str:
    """The agent's side."""
    return f"""serverAddr = "127.0.0.1"
serverPort = {control}
transport.tls.trustedCaFile = "{certificate.cert}"
transport.tls.serverName = "localhost"
log.level = "warn"
[[proxies]]
name = "origin"
type = "http"
localIP = "127.0.0.1"
localPort = {origin}
customDomains = ["{_HOST}"]
"""


def start(place: Place) -> Target:
    """frps, frpc, and nginx for the callers' TLS."""
    control, http, public = free_port(), free_port(), free_port()
    certificate = place.certificate
    server = place.write("frps.toml", server_config(control, http, certificate))
    client = place.write("frpc.toml", client_config(control, place.origin_port, certificate))
    pids = {"public": [place.spawn("frps", [find_program("frps") or "frps", "-c", str(server)])]}
    place.wait_for_port("frps", control)
    pids["agent"] = [place.spawn("frpc", [find_program("frpc") or "frpc", "-c", str(client)])]
    upstream = f"http://127.0.0.1:{http}"
    pids["nginx"] = [nginx.spawn(place, "nginx", public, upstream, host=_HOST)]
    return Target(url=f"https://127.0.0.1:{public}", ca=str(certificate.cert), watch=pids)
