"""rathole (Rust, raw TCP over TLS) with nginx in front, if it is on PATH."""

from __future__ import annotations

import subprocess
from typing import Final

from bench.certificate import Certificate
from bench.clients import Target
from bench.peers import nginx
from bench.place import Place, find_program, free_port

NAME: Final = "rathole + nginx"
_PASSWORD: Final = "bench"


def missing() -> str | None:
    """Why it can't run here."""
    if find_program("rathole") is None:
        return "rathole is not on PATH"
    if find_program("openssl") is None:
        return "openssl is not on PATH (rathole takes its key as PKCS#12)"
    return nginx.missing()


def server_config(control: int, service: int, identity: str) -> str:
    """The public side: control connections on `control`, the service's port `service`."""
    return f"""[server]
bind_addr = "127.0.0.1:{control}"
default_token = "bench"
[server.transport]
type = "tls"
[server.transport.tls]
pkcs12 = "{identity}"
pkcs12_password = "{_PASSWORD}"
[server.services.origin]
bind_addr = "127.0.0.1:{service}"
"""


def client_config(control: int, origin: int, certificate: Certificate) -> str:
    """The agent's side."""
    return f"""[client]
remote_addr = "127.0.0.1:{control}"
default_token = "bench"
[client.transport]
type = "tls"
[client.transport.tls]
trusted_root = "{certificate.cert}"
hostname = "localhost"
[client.services.origin]
local_addr = "127.0.0.1:{origin}"
"""


def start(place: Place) -> Target:
    """Server, client, and nginx for the callers' TLS."""
    program = find_program("rathole") or "rathole"
    control, inner, public = free_port(), free_port(), free_port()
    certificate = place.certificate
    identity = place.folder / "identity.pfx"
    _export_identity(certificate, str(identity))
    server = place.write("server.toml", server_config(control, inner, str(identity)))
    client = place.write("client.toml", client_config(control, place.origin_port, certificate))
    pids = {"public": [place.spawn("server", [program, str(server)])]}
    place.wait_for_port("server", control)
    pids["agent"] = [place.spawn("client", [program, str(client)])]
    place.wait_for_port("client", inner)
    pids["nginx"] = [nginx.spawn(place, "nginx", public, f"http://127.0.0.1:{inner}")]
    return Target(url=f"https://127.0.0.1:{public}", ca=str(certificate.cert), watch=pids)


def _export_identity(certificate: Certificate, path: str) -> None:
    command = ["openssl", "pkcs12", "-export", "-in", str(certificate.cert)]
    command += ["-inkey", str(certificate.key), "-out", path, "-passout", f"pass:{_PASSWORD}"]
    subprocess.run(command, check=True, capture_output=True)
