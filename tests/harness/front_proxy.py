"""nginx and haproxy in front of a relay, as their manuals configure them."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .processes import Daemon, free_port

_NGINX: Final = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.err;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{relay_port};
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""
_HAPROXY: Final = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen relay
    bind 127.0.0.1:{port}
    server relay 127.0.0.1:{relay_port} {option}
"""


@contextmanager
def nginx(folder: Path, relay_port: int) -> Iterator[int]:
    """Run nginx with a plain `proxy_pass` to a relay without TLS; yields its port."""
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, port=port, relay_port=relay_port))
    command = [found("nginx"), "-c", str(file), "-e", str(folder / "nginx.err"), "-p", str(folder)]
    with Daemon(command, log=folder / "nginx.log") as running:
        running.wait_until(lambda: _accepts(port), "nginx does not listen")
        yield port


@contextmanager
def haproxy(folder: Path, relay_port: int, option: str) -> Iterator[int]:
    """Run haproxy in TCP mode; `option` is `send-proxy` or `send-proxy-v2`. Yields its port."""
    port = free_port()
    file = folder / f"haproxy-{option}.cfg"
    file.write_text(_HAPROXY.format(port=port, relay_port=relay_port, option=option))
    command = [found("haproxy"), "-db", "-f", str(file)]
    with Daemon(command, log=folder / f"haproxy-{option}.log") as running:
        running.wait_until(lambda: _accepts(port), "haproxy does not listen")
        yield port


def found(name: str) -> str:
    """The path of a program that may be in a folder for administrators; "" if it is missing."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
