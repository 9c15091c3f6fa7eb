"""What a relay is known by, kept in its data folder across restarts.

`relay.key` (Ed25519, named by invites); `relay-tls.key` and `relay-tls.crt`, the port's key and
certificate; `relay-ca.key` and `relay-ca.crt`, the private CA that issued it; `relay.crt`, both
certificates; `admin.token` (made at the first start, 0600); and, while a relay runs, `relay.json`:
where the CLI finds it. What the files say is here; how they are written is `folder`'s.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
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
"""The port's certificate, and the CA's after it: callers may trust this file too."""
SHOWN_FILE: Final = "relay-tls.crt"
"""The port's certificate alone, as the port shows it: callers that trust the CA have the CA's, and
with both, a handshake would not fit into one packet of a narrow path."""
AUTHORITY_KEY_FILE: Final = "relay-ca.key"
AUTHORITY_FILE: Final = "relay-ca.crt"
"""What callers trust."""
ADMIN_TOKEN_FILE: Final = "admin.token"  # noqa: S105 - a file's name
RUNNING_FILE: Final = "relay.json"
ADMIN_TOKEN_PREFIX: Final = "wai_at_"  # noqa: S105 - a prefix
ADMIN_TOKEN_BYTES: Final = 32

_log = logging.getLogger("wai.tls")


class TlsFiles(msgspec.Struct, frozen=True):
    """A certificate and its key as files, for `ssl.SSLContext.load_cert_chain`.

    `pin` is the SHA-256 of the leaf's SubjectPublicKeyInfo, `ends` when it is over, in seconds
    since 1970, `hosts` the names and addresses that it is good for.
    """

    certificate: Path
    key: Path
    pin: bytes
    ends: float
    hosts: frozenset[str]


def load_relay_key(folder: DataFolder) -> RelayKey:
    """The relay's Ed25519 key, made at the first start. Raises `StoreError`."""
    return load_or_make(folder, KEY_FILE, RelayKey)


def load_self_signed(
    folder: DataFolder, hosts: Iterable[str], now: datetime.datetime | None = None
) -> TlsFiles:
    """The relay's own certificate, good for `hosts` besides this machine's loopback names.

    Made at the first start and kept. When `hosts` has a new one, or the end is near, it is issued
    again with the same key, so that nodes' pins stay good. Callers that trust the relay's CA notice
    nothing, unless a new host is not among those that the CA may vouch for. A self-signed
    certificate of an earlier version, which callers trust by itself, stays until then.
    Raises `StoreError`.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    key = _load_key(folder, TLS_KEY_FILE)
    kept = folder.read(CERTIFICATE_FILE)
    chain = certificates.certificates_from_pem(kept) if kept is not None else []
    wanted = dict.fromkeys((*certificates.ALWAYS_NAMED, *hosts))
    if chain and certificates.is_good(chain[0], key, wanted, now):
        leaf = chain[0]
    else:
        already = sorted(certificates.hosts_of(chain[0])) if chain else []
        names = (*wanted, *already)
        authority_key = _load_key(folder, AUTHORITY_KEY_FILE)
        authority = _load_authority(folder, authority_key, names, now)
        leaf = certificates.issue(key, names, now, authority, authority_key)
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, authority))
        folder.write(CERTIFICATE_FILE, pem, PUBLIC_MODE)
    shown = leaf.public_bytes(Encoding.PEM)
    if folder.read(SHOWN_FILE) != shown:
        folder.write(SHOWN_FILE, shown, PUBLIC_MODE)
    return _files(folder.path / SHOWN_FILE, folder.path / TLS_KEY_FILE, leaf)


def trusted_file(folder: DataFolder) -> Path:
    """What callers trust: the CA, or a self-signed certificate of an earlier version."""
    authority = folder.path / AUTHORITY_FILE
    return authority if authority.exists() else folder.path / CERTIFICATE_FILE


def _load_authority(
    folder: DataFolder,
    key: certificates.PrivateKey,
    hosts: Iterable[str],
    now: datetime.datetime,
) -> x509.Certificate:
    """The CA's certificate, issued again with the same key where it can't vouch for `hosts`."""
    kept = folder.read(AUTHORITY_FILE)
    authority = certificates.certificate_from_pem(kept) if kept is not None else None
    if authority is None or not certificates.can_vouch(authority, key, hosts, now):
        if authority is not None:
            _log.warning(
                "the relay has a new name or its CA is near its end: callers must trust the new %s",
                folder.path / AUTHORITY_FILE,
            )
        authority = certificates.issue_authority(key, hosts, now)
        folder.write(AUTHORITY_FILE, authority.public_bytes(Encoding.PEM), PUBLIC_MODE)
    return authority


def _load_key(folder: DataFolder, name: str) -> certificates.PrivateKey:
    """The key in a file, made if there is none. Raises `StoreError`."""
    kept = folder.read(name)
    if kept is not None:
        return certificates.key_from_pem(kept)
    key = certificates.generate_key()
    folder.write(name, certificates.key_to_pem(key))
    return key


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
    hosts = frozenset(certificates.hosts_of(leaf))
    return TlsFiles(certificate, key, certificates.pin_of(leaf), ends, hosts)


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
