"""The relay's identity: made once, kept, private, and a certificate that real clients trust."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.harness.npm import node_program
from wai_cli.client.pin import spki_sha256
from wai_protocol.errors import StoreError
from wai_relay import certificate
from wai_relay.identity import (
    TlsFiles,
    announce,
    given_tls,
    load_admin_token,
    load_relay_key,
    load_self_signed,
    withdraw,
)
from wai_transport.folder import DataFolder


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder.open(tmp_path / "relay")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_kept_across_restarts_and_private(folder: DataFolder) -> None:
    old = os.umask(0)
    try:
        first = load_relay_key(folder), load_self_signed(folder, []), load_admin_token(folder)
    finally:
        os.umask(old)
    pem = first[1].certificate.read_bytes()
    again = load_relay_key(folder), load_self_signed(folder, []), load_admin_token(folder)
    assert again == first
    assert first[1].certificate.read_bytes() == pem
    assert _mode(folder.path) == 0o700
    for name in ("relay.key", "relay-tls.key", "admin.token"):
        assert _mode(folder.path / name) == 0o600


def test_a_damaged_key_is_an_error_not_a_new_identity(folder: DataFolder) -> None:
    for name in ("relay.key", "relay-tls.key"):
        (folder.path / name).write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        load_relay_key(folder)
    with pytest.raises(StoreError, match="damaged"):
        load_self_signed(folder, [])
    assert (folder.path / "relay.key").read_bytes() == b"short"


def test_a_new_host_name_changes_the_certificate_but_not_the_pin(folder: DataFolder) -> None:
    first = load_self_signed(folder, ["relay.example"])
    second = load_self_signed(folder, ["192.0.2.7", "[::1]".strip("[]")])
    assert first.pin == second.pin
    named = certificate.hosts_of(x509.load_pem_x509_certificate(second.certificate.read_bytes()))
    assert named >= {"relay.example", "192.0.2.7", "localhost", "127.0.0.1", "::1"}


def test_a_certificate_near_its_end_is_made_anew_with_the_same_pin(folder: DataFolder) -> None:
    first = load_self_signed(folder, [])
    pem = first.certificate.read_bytes()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3640)
    assert load_self_signed(folder, [], later).pin == first.pin
    assert first.certificate.read_bytes() != pem


def test_the_commands_find_the_same_pin_without_cryptography(folder: DataFolder) -> None:
    files = load_self_signed(folder, [])
    der = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    assert spki_sha256(der) == files.pin
    for cut in range(0, len(der), 7):
        with pytest.raises(ValueError):
            spki_sha256(der[:cut])


def test_a_certificate_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing\.pem"):
        given_tls(tmp_path / "nothing.pem", tmp_path / "key.pem")


def test_relay_json_is_removed_by_its_writer_only(folder: DataFolder) -> None:
    announce(folder, "https://127.0.0.1:8443", b"p" * 32)
    running = json.loads((folder.read("relay.json")) or b"")
    assert running == {"url": "https://127.0.0.1:8443", "pin": "70" * 32, "pid": os.getpid()}
    folder.write("relay.json", json.dumps({**running, "pid": 1}).encode())
    withdraw(folder)  # a successor's
    assert folder.read("relay.json") is not None
    announce(folder, "https://127.0.0.1:8443", None)
    withdraw(folder)
    assert folder.read("relay.json") is None


@contextmanager
def _serving(files: TlsFiles) -> Iterator[int]:
    """A TLS server that answers every connection with one small HTTP response."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                with plain:
                    try:
                        with context.wrap_socket(plain, server_side=True) as secure:
                            secure.recv(4096)
                            secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_python_trusts_it_also_in_strict_mode(folder: DataFolder) -> None:
    files = load_self_signed(folder, [])
    with _serving(files) as port:
        for flags in (0, ssl.VERIFY_X509_STRICT):
            context = ssl.create_default_context(cafile=str(files.certificate))
            context.verify_flags |= flags
            for name in ("localhost", "127.0.0.1"):
                with (
                    socket.create_connection(("127.0.0.1", port)) as plain,
                    context.wrap_socket(plain, server_hostname=name) as secure,
                ):
                    secure.sendall(b"x")
                    assert secure.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_trusts_it(folder: DataFolder) -> None:
    files = load_self_signed(folder, [])
    with _serving(files) as port:
        command = ["curl", "-sS", "--cacert", str(files.certificate), f"https://127.0.0.1:{port}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.stderr) == ("ok", "")


@pytest.mark.skipif(node_program() is None, reason="Node.js is not installed")
def test_node_js_trusts_it(folder: DataFolder) -> None:
    node = node_program()
    assert node is not None
    files = load_self_signed(folder, [])
    script = "fetch(process.argv[1]).then(r=>r.text()).then(console.log)"
    with _serving(files) as port:
        done = subprocess.run(
            [node, "-e", script, f"https://127.0.0.1:{port}/"],
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(files.certificate)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.stdout.strip() == "ok", done.stderr
