"""Client-side TLS: verify the server, and hash its certificate for the handshake's proof.

A server is verified by a pin (SHA-256 of the certificate's SubjectPublicKeyInfo, as in RFC 7469),
for a relay without a domain, or by certificate authorities.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl

from wai_protocol.errors import AuthError
from wai_protocol.invite import MAX_PINS, is_pin, pins_in

TlsObject = ssl.SSLObject | ssl.SSLSocket

_RECORD_BYTES = 16 * 1024
"""The plaintext of one TLS record (RFC 8446 section 5.1)."""


class ClientContext(ssl.SSLContext):
    """A context whose TLS objects can decrypt what their transport has not read: see `decrypt`."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002  # as in `ssl`
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Make a TLS object, and remember where its received bytes go."""
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        made.incoming = incoming  # type: ignore[attr-defined]  # for `decrypt`
        return made


def decrypt(tls: ssl.SSLObject, received: bytes) -> bytes:
    """Return the plaintext of bytes that a closed transport left in its socket.

    `tls` was the transport's. Returns b"" if it is not of a `ClientContext`, or if the bytes are
    not what follows those that the transport read.
    """
    incoming = getattr(tls, "incoming", None)
    if not isinstance(incoming, ssl.MemoryBIO):
        return b""
    plain = b""
    try:
        incoming.write(received)
        while data := tls.read(_RECORD_BYTES):
            plain += data
    except ssl.SSLError:  # more is wanted, or the peer ended TLS
        pass
    return plain


def client_context(pin: bytes | None, alpn: list[str]) -> ssl.SSLContext:
    """Make a client's context: TLS 1.2 or newer, offering `alpn` in this order.

    With a `pin`, the context accepts any certificate: the caller **must** call `check_pin` after
    the TLS handshake, before the first byte is sent. Without one, the TLS handshake checks the
    certificate authority and the host name. Raises `ValueError` if `pin` is not 1 to 4 times 32
    bytes.
    """
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(alpn)
    if pin is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    if not is_pin(pin):
        raise ValueError(f"a pin is 1 to {MAX_PINS} times 32 bytes, not {len(pin)}")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_pin(tls: TlsObject, pin: bytes) -> None:
    """Raise `AuthError` unless the public key in the peer's certificate is pinned.

    The TLS handshake has proven that the peer holds the private key. The certificate's names and
    dates are not checked, because they add nothing to that.
    """
    shown = spki_sha256(_peer_certificate(tls))
    if not any(hmac.compare_digest(shown, good) for good in pins_in(pin)):
        raise AuthError("the server's certificate is not the pinned one")


def spki_sha256(der: bytes) -> bytes:
    """Return the SHA-256 of the SubjectPublicKeyInfo in the DER certificate `der`.

    Raises `AuthError` if the certificate cannot be parsed.
    """
    # A tenth of a node's start is this import, and only a pin needs it.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = x509.load_der_x509_certificate(der).public_key()
        info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception as error:  # the parser raises many classes, all for an invalid certificate
        raise AuthError("the server's certificate can't be read") from error
    return hashlib.sha256(info).digest()


def endpoint_hash(tls: TlsObject) -> bytes:
    """Return the SHA-256 of the peer's whole DER certificate, to which the proof is bound.

    This is RFC 5929's `tls-server-end-point` with the hash fixed to SHA-256, so that the server
    need not know which hash its certificate was signed with.
    """
    return hashlib.sha256(_peer_certificate(tls)).digest()


def _peer_certificate(tls: TlsObject) -> bytes:
    der = tls.getpeercert(binary_form=True)
    if not der:
        raise AuthError("the server showed no certificate")
    return der
