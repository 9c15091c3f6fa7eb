"""Which certificate a TLS handshake on the port is shown: the current one, or a challenge's.

The context that the port was opened with stays; each handshake is switched to the current one, so
that a new certificate, of whatever key type, holds from the next handshake on and no connection
notices. An authority that checks our name by TLS-ALPN-01 (RFC 8737) gets the challenge's
certificate on the same port, and nobody else does. Where certificates come from is `port_tls`'s.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .listener import ALPN_PROTOCOLS

ALPN_ACME: Final = "acme-tls/1"
# The ALPN extension of a ClientHello that offers this and nothing else, as RFC 8737 section 4 asks:
# type 16, lengths of extension, list and name.
_OFFERS_ACME: Final = b"\x00\x10\x00\x0d\x00\x0b\x0a" + ALPN_ACME.encode()
OLD_GRACE_S: Final = 60.0
"""How long after a swap a node may still prove that it saw the old certificate: a handshake over
TLS and one over the tunnel, 10 s each, and a machine that is too busy to think."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its key, ready to be shown."""

    context: ssl.SSLContext
    leaf_hash: bytes


def load_pair(certificate: Path, key: Path) -> Pair:
    """Read two PEM files. Raises `ssl.SSLError` or `OSError` if they are no pair."""
    return Pair(_context(certificate, key), leaf_hash(certificate))


class ServedCertificate:
    """What one TLS port shows. `context` is for `Listener.open`. Belongs to one loop."""

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
        """Show another certificate from the next handshake on."""
        if pair.leaf_hash != self._hash:
            self._old = (self._hash, self._clock() + OLD_GRACE_S)
        self._shown, self._hash = pair.context, pair.leaf_hash

    @property
    def hashes(self) -> frozenset[bytes]:
        """SHA-256 of each certificate that a node may have seen a moment ago."""
        if self._old is not None and self._clock() < self._old[1]:
            return frozenset({self._hash, self._old[0]})
        return frozenset({self._hash})

    @contextmanager
    def challenge(self, name: str, certificate: Path) -> Iterator[None]:
        """Show `certificate` (a PEM file with its key) to who checks `name` by TLS-ALPN-01."""
        context = _context(certificate, certificate)
        context.set_alpn_protocols([ALPN_ACME])
        self._challenge = (name, context)
        # Only the ClientHello tells an authority from a caller, and this is the one way in Python
        # to see it before the certificate is chosen. It is set for the seconds of a challenge.
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
        """A TLS message of some handshake; its ClientHello comes just before `_choose`."""
        if direction == "read" and content == 22 and kind == 1:  # handshake, ClientHello
            self._challenged = _OFFERS_ACME in data

    def _choose(self, tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        challenged, self._challenged = self._challenged, False
        if challenged and self._challenge is not None and name == self._challenge[0]:
            tls.context = self._challenge[1]
        elif self._shown is not self.context:
            tls.context = self._shown


def leaf_hash(file: Path) -> bytes:
    """SHA-256 of the leaf certificate in a PEM file, as a node's TLS library sees it."""
    leaf = x509.load_pem_x509_certificates(file.read_bytes())[0]
    return hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest()


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(ALPN_PROTOCOLS))
    context.load_cert_chain(certificate, key)
    return context
