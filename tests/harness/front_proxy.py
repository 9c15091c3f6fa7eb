"""nginx, haproxy and Caddy in front of a relay, configured plainly or by a given text."""

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
    {server}
}}
"""
_PLAIN_SERVER: Final = """server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{relay_port};
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}"""
_TCP: Final = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen relay
    bind 127.0.0.1:{port}
    server relay 127.0.0.1:{relay_port} {option}
"""
_CADDY: Final = """{{
    admin off
    auto_https disable_redirects
    skip_install_trust
    storage file_system {folder}/caddy
}}
{site}
"""


@contextmanager
def nginx(folder: Path, relay_port: int) -> Iterator[int]:
    """Run nginx with a plain `proxy_pass` to a relay without TLS; yields its port."""
    port = free_port()
    with nginx_with(folder, _PLAIN_SERVER.format(port=port, relay_port=relay_port), port):
        yield port


@contextmanager
def haproxy(folder: Path, relay_port: int, option: str) -> Iterator[int]:
    """Run haproxy in TCP mode; `option` is `send-proxy` or `send-proxy-v2`. Yields its port."""
    port = free_port()
    with haproxy_with(folder, _TCP.format(port=port, relay_port=relay_port, option=option), port):
        yield port


@contextmanager
def nginx_with(folder: Path, server: str, port: int) -> Iterator[None]:
    """Run nginx with this `server` block, until it listens at `port`."""
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, server=server))
    errors = str(folder / "nginx.err")
    with _running("nginx", ["-c", str(file), "-e", errors, "-p", str(folder)], folder, port):
        yield


@contextmanager
def haproxy_with(folder: Path, text: str, port: int) -> Iterator[None]:
    """Run haproxy with this configuration, until it listens at `port`."""
    file = folder / "haproxy.cfg"
    file.write_text(text)
    with _running("haproxy", ["-db", "-f", str(file)], folder, port):
        yield


@contextmanager
def caddy_with(folder: Path, site: str, port: int) -> Iterator[None]:
    """Run Caddy with this site, until it listens at `port`. It asks no authority for anything."""
    file = folder / "Caddyfile"
    file.write_text(_CADDY.format(folder=folder, site=site))
    with _running("caddy", ["run", "--config", str(file), "--adapter", "caddyfile"], folder, port):
        yield


def found(name: str) -> str:
    """The path of a program that may be in a folder for administrators; "" if it is missing."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""


@contextmanager
def _running(name: str, arguments: list[str], folder: Path, port: int) -> Iterator[None]:
    # Caddy keeps its state below these.
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with Daemon([found(name), *arguments], log=folder / f"{name}.log", env=home) as running:
        running.wait_until(lambda: _accepts(port), f"{name} does not listen")
        yield


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
