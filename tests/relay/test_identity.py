"""The relay's identity: made once, kept, private, and a certificate that real clients trust."""

from __future__ import annotations

import datetime
import ipaddress
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
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

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
    der = ssl.PEM_cert_to_DER_cert(_first(files.certificate))
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


def _first(file: Path) -> str:
    """The first certificate of a file."""
    return file.read_text().partition(ssl.PEM_FOOTER)[0] + ssl.PEM_FOOTER


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


def _greet(port: int, context: ssl.SSLContext, name: str) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        secure.sendall(b"x")
        return secure.recv(4096)


@pytest.fixture
def ca(folder: DataFolder) -> Path:
    return folder.path / "relay-ca.crt"


def test_python_trusts_it_also_in_strict_mode(folder: DataFolder, ca: Path) -> None:
    files = load_self_signed(folder, [])
    with _serving(files) as port:
        for file in (ca, folder.path / "relay.crt"):
            for flags in (0, ssl.VERIFY_X509_STRICT):
                context = ssl.create_default_context(cafile=str(file))
                context.verify_flags |= flags
                for name in ("localhost", "127.0.0.1"):
                    assert _greet(port, context, name).startswith(b"HTTP/1.1 200")


def test_a_renewed_certificate_needs_no_new_trust_and_keeps_the_pin(
    folder: DataFolder, ca: Path
) -> None:
    first = load_self_signed(folder, ["relay.example"])
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    pem = first.certificate.read_bytes()
    later = datetime.datetime.now(datetime.UTC) + certificate.LIFETIME
    soon = later - certificate.RENEW_BEFORE - datetime.timedelta(days=1)
    assert load_self_signed(folder, ["relay.example"], soon) == first
    (folder.path / "relay.crt").unlink()
    renewed = load_self_signed(folder, ["relay.example"])
    assert renewed.certificate.read_bytes() != pem
    assert renewed.pin == first.pin
    with _serving(renewed) as port:
        assert _greet(port, context, "relay.example").startswith(b"HTTP/1.1 200")
    authority = ca.read_bytes()
    assert load_self_signed(folder, ["relay.example"], later).ends > later.timestamp()
    assert ca.read_bytes() == authority


def test_the_ca_is_private_and_vouches_for_nobody_else(folder: DataFolder, ca: Path) -> None:
    load_self_signed(folder, ["relay.example"])
    assert _mode(folder.path / "relay-ca.key") == 0o600
    authority = x509.load_pem_x509_certificate(ca.read_bytes())
    allowed = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    names = [x509.DNSName("localhost"), x509.DNSName("relay.example")]
    assert allowed.permitted_subtrees == names  # BoringSSL refuses constraints of addresses
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    key = certificate.key_from_pem((folder.path / "relay-ca.key").read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    stolen = certificate.issue(certificate.generate_key(), ["bank.example"], now, authority, key)
    (folder.path / "relay.crt").write_bytes(stolen.public_bytes(Encoding.PEM))
    refused = subprocess.run(
        ["openssl", "verify", "-CAfile", str(ca), str(folder.path / "relay.crt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "permitted subtree violation" in refused.stderr


def test_a_new_name_outside_the_cas_needs_new_trust_and_that_is_logged(
    folder: DataFolder, ca: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_self_signed(folder, ["relay.example"])
    key, authority = (folder.path / "relay-ca.key").read_bytes(), ca.read_bytes()
    load_self_signed(folder, ["192.0.2.7"])
    assert (ca.read_bytes(), caplog.text) == (authority, "")  # addresses are not constrained
    load_self_signed(folder, ["other.example"])
    assert "callers must trust the new" in caplog.text
    assert (folder.path / "relay-ca.key").read_bytes() == key
    with _serving(load_self_signed(folder, [])) as port:
        context = ssl.create_default_context(cafile=str(ca))
        for name in ("relay.example", "other.example"):
            assert _greet(port, context, name).startswith(b"HTTP/1.1 200")


def test_a_self_signed_certificate_of_an_earlier_version_stays_until_it_must_go(
    folder: DataFolder, ca: Path
) -> None:
    key = certificate.generate_key()
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wai relay")])
    hosts = [x509.DNSName("localhost"), x509.DNSName("relay.example")]
    addresses = [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1")]
    old = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([*hosts, *addresses]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    folder.write("relay-tls.key", certificate.key_to_pem(key))
    folder.write("relay.crt", old.public_bytes(Encoding.PEM), 0o644)
    files = load_self_signed(folder, ["relay.example"])
    assert files.certificate.read_bytes() == old.public_bytes(Encoding.PEM)
    assert not ca.exists()
    moved = load_self_signed(folder, ["new.example"])
    assert moved.pin == files.pin
    with _serving(moved) as port:
        context = ssl.create_default_context(cafile=str(ca))
        for host in ("relay.example", "new.example"):
            assert _greet(port, context, host).startswith(b"HTTP/1.1 200")


def test_a_damaged_ca_key_is_an_error_and_no_new_ca(folder: DataFolder, ca: Path) -> None:
    load_self_signed(folder, [])
    authority = ca.read_bytes()
    (folder.path / "relay-ca.key").write_bytes(b"short")
    load_self_signed(folder, [])  # nothing is to be issued
    with pytest.raises(StoreError, match="damaged"):
        load_self_signed(folder, ["new.example"])
    assert ca.read_bytes() == authority


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_trusts_it(folder: DataFolder, ca: Path) -> None:
    files = load_self_signed(folder, [])
    with _serving(files) as port:
        command = ["curl", "-sS", "--cacert", str(ca), f"https://127.0.0.1:{port}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.stderr) == ("ok", "")


@pytest.mark.skipif(node_program() is None, reason="Node.js is not installed")
def test_node_js_trusts_it(folder: DataFolder, ca: Path) -> None:
    node = node_program()
    assert node is not None
    files = load_self_signed(folder, [])
    script = "fetch(process.argv[1]).then(r=>r.text()).then(console.log)"
    with _serving(files) as port:
        done = subprocess.run(
            [node, "-e", script, f"https://127.0.0.1:{port}/"],
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(ca)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.stdout.strip() == "ok", done.stderr
