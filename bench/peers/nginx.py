"""nginx twice: a caller's TLS hop, then a second TLS hop, then plain HTTP. No tunnel: the limit.

Its configuration also serves the peers that end no TLS themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.certificate import Certificate
from bench.clients import Target
from bench.place import Place, find_program, free_port
from bench.procstat import most_streams

NAME: Final = "nginx two hops"


def missing() -> str | None:
    """Why it can't run here."""
    return None if find_program("nginx") else "nginx is not installed (Debian: nginx)"


def config(
    folder: Path,
    label: str,
    listen: int,
    certificate: Certificate,
    upstream: str,
    *,
    host: str = "localhost",
) -> str:
    """One hop: TLS on `listen`, forwarded to `upstream` ("http://…" or "https://…"), unbuffered."""
    scheme, _, address = upstream.partition("://")
    trust = f"""
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_ssl_trusted_certificate {certificate.cert};"""
    return f"""daemon off;
pid {folder}/{label}.pid;
error_log {folder}/{label}.err warn;
worker_processes 1;
events {{ worker_connections {2 * most_streams()}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/{label}-body;
    proxy_temp_path {folder}/{label}-proxy;
    fastcgi_temp_path {folder}/{label}-fastcgi;
    uwsgi_temp_path {folder}/{label}-uwsgi;
    scgi_temp_path {folder}/{label}-scgi;
    keepalive_requests 1000000;
    upstream next {{
        server {address};
        keepalive 512;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{listen} ssl http2 backlog=4096;
        ssl_certificate {certificate.cert};
        ssl_certificate_key {certificate.key};
        ssl_session_cache shared:tls:10m;
        client_max_body_size 0;
        location / {{
            proxy_pass {scheme}://next;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host {host};
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 300s;{trust if scheme == "https" else ""}
        }}
    }}
}}
"""


def spawn(
    place: Place,
    label: str,
    listen: int,
    upstream: str,
    *,
    host: str = "localhost",
) -> int:
    """Start one nginx hop and wait until it listens; gives its master's process id."""
    text = config(place.folder, label, listen, place.certificate, upstream, host=host)
    path = place.write(f"{label}.conf", text)
    program = find_program("nginx") or "nginx"
    pid = place.spawn(
        label, [program, "-p", str(place.folder), "-c", str(path), "-g", "user root;"]
    )
    place.wait_for_port(label, listen)
    return pid


def start(place: Place) -> Target:
    """Two instances, as relay and node are two."""
    outer, inner = free_port(), free_port()
    agent = spawn(place, "inner", inner, f"http://127.0.0.1:{place.origin_port}")
    public = spawn(place, "outer", outer, f"https://127.0.0.1:{inner}")
    return Target(
        url=f"https://127.0.0.1:{outer}",
        ca=str(place.certificate.cert),
        watch={"agent": [agent], "public": [public]},
    )
