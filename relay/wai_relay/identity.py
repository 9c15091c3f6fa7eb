"""What a relay is known by, kept in its data folder across restarts.

`relay.key` (Ed25519, named by invites), `relay-tls.key` and `relay.crt` (self-signed),
`admin.token` (made at the first start, 0600), and, while a relay runs, `relay.json`: where the CLI
finds it. What the files say is here; how they are written is `folder`'s.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from wai_protocol.errors import StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_protocol.identity import RelayKey
from wai_relay import certificate as certificates
from wai_transport.folder import PUBLIC_MODE, DataFolder
from wai_transport.identity_file import load_or_make

KEY_FILE: Final = "relay.key"
TLS_KEY_FILE: Final = "relay-tls.key"
CERTIFICATE_FILE: Final = "relay.crt"
ADMIN_TOKEN_FILE: Final = "admin.token"  # noqa: S105 - a file's name
RUNNING_FILE: Final = "relay.json"
ADMIN_TOKEN_PREFIX: Final = "wai_at_"  # noqa: S105 - a prefix
ADMIN_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate and its key as files, for `ssl.SSLContext.load_cert_chain`.

    `pin` is the SHA-256 of the leaf's SubjectPublicKeyInfo, `ends` when it is over, in seconds
    since 1970.
    """

    certificate: Path
    key: Path
    pin: bytes
    ends: float


def load_relay_key(folder: DataFolder) -> RelayKey:
    """The relay's Ed25519 key, made at the first start. Raises `StoreError`."""
    return load_or_make(folder, KEY_FILE, RelayKey)


def load_self_signed(
    folder: DataFolder, hosts: Iterable[str], now: datetime.datetime | None = None
) -> TlsFiles:
    """The relay's own certificate, good for `hosts` besides this machine's loopback names.

    Made at the first start and kept. When `hosts` has a new one, or the end is near, it is issued
    again with the same key: nodes' pins stay good, callers need the new `relay.crt`.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    kept_key, kept = folder.read(TLS_KEY_FILE), folder.read(CERTIFICATE_FILE)
    if kept_key is None:
        key = certificates.generate_key()
        folder.write(TLS_KEY_FILE, certificates.key_to_pem(key))
    else:
        key = certificates.key_from_pem(kept_key)
    wanted = dict.fromkeys((*certificates.ALWAYS_NAMED, *hosts))
    certificate = certificates.certificate_from_pem(kept) if kept is not None else None
    if certificate is None or not certificates.is_good(certificate, key, wanted, now):
        already = sorted(certificates.hosts_of(certificate)) if certificate is not None else []
        certificate = certificates.issue(key, (*wanted, *already), now)
        pem = certificate.public_bytes(Encoding.PEM)
        folder.write(CERTIFICATE_FILE, pem, PUBLIC_MODE)
    return _files(folder.path / CERTIFICATE_FILE, folder.path / TLS_KEY_FILE, certificate)


def given_tls(certificate: Path, key: Path) -> TlsFiles:
    """A certificate that the operator brought. Raises `StoreError` if it can't be read."""
    try:
        pem = certificate.read_bytes()
        with key.open("rb"):
            pass  # readable: better said now than in the middle of a handshake
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be read: {error.strerror}") from error
    return _files(certificate, key, certificates.certificate_from_pem(pem))


def _files(certificate: Path, key: Path, leaf: x509.Certificate) -> TlsFiles:
    ends = leaf.not_valid_after_utc.timestamp()
    return TlsFiles(certificate, key, certificates.pin_of(leaf), ends)


def load_admin_token(folder: DataFolder) -> str:
    """The token of the admin on this machine, made at the first start; delete its file for a new
    one. Raises `StoreError`."""
    kept = folder.read(ADMIN_TOKEN_FILE)
    if kept is not None and (token := kept.decode("ascii", "replace").strip()):
        return token
    token = new_admin_token()
    folder.write(ADMIN_TOKEN_FILE, token.encode() + b"\n")
    return token


def new_admin_token() -> str:
    """A fresh token: `wai_at_` and 256 random bits."""
    return ADMIN_TOKEN_PREFIX + secrets.token_urlsafe(ADMIN_TOKEN_BYTES)


def announce(folder: DataFolder, url: str, pin: bytes | None) -> None:
    """Write `relay.json`, by which commands on this machine find the running relay.

    `url` is one that this machine reaches (loopback where we listen on every address).
    """
    running = {"url": url, "pin": pin.hex() if pin is not None else None, "pid": os.getpid()}
    folder.write(RUNNING_FILE, json.dumps(running).encode() + b"\n")


def withdraw(folder: DataFolder) -> None:
    """Remove `relay.json`, unless a successor has written its own."""
    kept = folder.read(RUNNING_FILE)
    if kept is None:
        return
    try:
        running = read_json(kept, dict[str, Any], RUNNING_FILE)
        ours = running.get("pid") == os.getpid()
    except ForeignJsonError:
        ours = True  # damaged: of no use to anybody
    if ours:
        folder.remove(RUNNING_FILE)
