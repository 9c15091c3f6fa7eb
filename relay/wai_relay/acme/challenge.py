"""The content of challenges: TLS-ALPN-01's certificate, and HTTP-01's path.

They are served by `proof`.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from wai_relay.certificate import generate_key, key_to_pem

HTTP_PATH: Final = "/.well-known/acme-challenge/"
_ACME_IDENTIFIER: Final = ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # RFC 8737 section 6.1
_OCTET_STRING_OF_32: Final = b"\x04\x20"
_LIFETIME: Final = datetime.timedelta(days=1)  # not checked by authorities


def tls_alpn_certificate(name: str, authorization: str, now: datetime.datetime) -> bytes:
    """Make the key and certificate that answer `acme-tls/1` for `name` (RFC 8737 section 3).

    `authorization`: the challenge's key authorization. Returns both in PEM.
    """
    key = generate_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    digest = hashlib.sha256(authorization.encode()).digest()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LIFETIME)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(_ACME_IDENTIFIER, _OCTET_STRING_OF_32 + digest),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    return key_to_pem(key) + certificate.public_bytes(Encoding.PEM)
