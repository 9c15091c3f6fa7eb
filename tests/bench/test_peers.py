"""Peer configurations: two TLS hops that verify each other, nothing buffered, loopback alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.certificate import make_certificate
from bench.peers import PEERS, frp, haproxy, litellm, nginx, openssh, rathole


def test_names_of_peers_are_their_own() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS) == 9


def test_no_configuration_listens_beyond_loopback(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    texts = [
        haproxy.config(1, certificate.both, "127.0.0.1:2"),
        nginx.config(tmp_path, "x", 1, certificate, "https://127.0.0.1:2"),
        openssh.server_config(1, tmp_path),
        rathole.server_config(1, 2, "id"),
        frp.server_config(1, 2, certificate),
        litellm.config(1),
    ]
    assert not any("0.0.0.0" in text or "*:" in text for text in texts)


def test_nginx_verifies_the_second_hop_and_buffers_nothing(tmp_path: Path) -> None:
    text = nginx.config(tmp_path, "x", 1, make_certificate(tmp_path), "https://127.0.0.1:2")
    assert "proxy_ssl_verify on" in text
    assert "proxy_buffering off" in text
    assert "proxy_request_buffering off" in text


def test_the_key_is_nobody_elses_to_read(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    assert certificate.key.stat().st_mode & 0o077 == 0
    assert certificate.both.stat().st_mode & 0o077 == 0


def test_haproxy_accepts_its_configuration(tmp_path: Path) -> None:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("haproxy is not installed; bench leaves it out too")
    path = tmp_path / "hop.cfg"
    path.write_text(haproxy.config(18_443, make_certificate(tmp_path).both, "127.0.0.1:2"))
    done = subprocess.run([program, "-c", "-f", str(path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
