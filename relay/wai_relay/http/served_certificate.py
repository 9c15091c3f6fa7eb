"""Choose the certificate for each TLS handshake on the port: the current one, or a challenge's.

The port keeps the TLS context that it was opened with; each handshake is switched to the current
context. So a new certificate, even of another key type, is used from the next handshake on, without
an effect on open connections. A certificate authority that validates the relay's name by
TLS-ALPN-01 (RFC 8737) gets the challenge's certificate on the same port. Certificates are loaded by
`port_tls`.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .listener import ALPN_PROTOCOLS

ALPN_ACME: Final = "acme-tls/1"
# The ALPN extension of a ClientHello that offers only this protocol, as RFC 8737 section 4
# requires: type 16, then the lengths of extension, list and name.
_OFFERS_ACME: Final = b"\x00\x10\x00\x0d\x00\x0b\x0a" + ALPN_ACME.encode()
OLD_GRACE_S: Final = 60.0
"""How long after a change a node's proof may still name the old certificate: a TLS handshake and
the tunnel's handshake take at most 10 s each; the rest is for a busy machine."""


class Pair(msgspec.Struct, frozen=True):
    """A TLS context with a certificate and its key, and the certificate's hash."""

    context: ssl.SSLContext
    leaf_hash: bytes


def load_pair(certificate: Path, key: Path) -> Pair:
    """Load a certificate and its key from PEM files. Raises `ssl.SSLError` or `OSError`."""
    return Pair(_context(certificate, key), leaf_hash(certificate))


class ServedCertificate:
    """The certificate that a TLS port presents. Belongs to one event loop.

    `context` is the TLS context for `Listener.open`.
    """

    def __init__(self, pair: Pair, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.context = pair.context
        self.context.sni_callback = self._choose
        self._shown = self.context
        self._hash = pair.leaf_hash
        self._old: tuple[bytes, float] | None = None
        self._clock = clock
        self._challenge: tuple[str, ssl.SSLContext] | None = None
        self._challenged = False

    def show(self, pair: Pair) -> None:
        """Present another certificate from the next handshake on."""
        if pair.leaf_hash != self._hash:
            self._old = (self._hash, self._clock() + OLD_GRACE_S)
        self._shown, self._hash = pair.context, pair.leaf_hash

    @property
    def hashes(self) -> frozenset[bytes]:
        """The SHA-256 of each certificate that a node may have seen in a handshake in progress."""
        if self._old is not None and self._clock() < self._old[1]:
            return frozenset({self._hash, self._old[0]})
        return frozenset({self._hash})

    @contextmanager
    def challenge(self, name: str, certificate: Path) -> Iterator[None]:
        """Within the block, present `certificate` to an authority that validates `name`.

        `certificate`: a PEM file that also holds the key. Only TLS-ALPN-01 handshakes get it.
        """
        context = _context(certificate, certificate)
        context.set_alpn_protocols([ALPN_ACME])
        self._challenge = (name, context)
        # Only the ClientHello distinguishes an authority from a caller, and this callback is the
        # only way in Python to see it before the certificate is chosen. It is set during challenges
        # only.
        self._watch_hellos(self._on_message)
        try:
            yield
        finally:
            self._challenge = None
            self._watch_hellos(None)

    def _watch_hellos(self, callback: Callable[..., None] | None) -> None:
        self.context._msg_callback = callback  # type: ignore[attr-defined]

    def _on_message(
        self, _tls: Any, direction: str, _version: int, content: int, kind: int, data: bytes
    ) -> None:
        """Note whether a ClientHello offers ACME. OpenSSL calls this before `_choose`."""
        if direction == "read" and content == 22 and kind == 1:  # handshake, ClientHello
            self._challenged = _OFFERS_ACME in data

    def _choose(self, tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        challenged, self._challenged = self._challenged, False
        if challenged and self._challenge is not None and name == self._challenge[0]:
            tls.context = self._challenge[1]
        elif self._shown is not self.context:
            tls.context = self._shown


def leaf_hash(file: Path) -> bytes:
    """Return the SHA-256 of the first (leaf) certificate in a PEM file."""
    leaf = x509.load_pem_x509_certificates(file.read_bytes())[0]
    return hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest()


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(ALPN_PROTOCOLS))
    context.load_cert_chain(certificate, key)
    return context
