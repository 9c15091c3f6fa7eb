"""Compute a certificate's pin, the SHA-256 of its SubjectPublicKeyInfo, from its DER encoding.

Importing `cryptography` for this would take longer than a whole command. This module skips the DER
fields before the key and checks nothing else, since the result is only compared with a known pin.
"""

from __future__ import annotations

import hashlib
from typing import Final

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0  # [0] EXPLICIT, absent in version 1
_FIELDS_BEFORE_KEY: Final = 5  # serialNumber, signature, issuer, validity, subject (RFC 5280 4.1)


def spki_sha256(certificate: bytes) -> bytes:
    """Return the pin of a DER certificate, 32 bytes. Raises ValueError if it is not one."""
    start, _ = _inside(certificate, 0)  # Certificate
    at, _ = _inside(certificate, start)  # TBSCertificate
    if _tag(certificate, at) == _VERSION:
        at = _end(certificate, at)
    for _ in range(_FIELDS_BEFORE_KEY):
        at = _end(certificate, at)
    if _tag(certificate, at) != _SEQUENCE:
        raise ValueError("not a certificate")
    return hashlib.sha256(certificate[at : _end(certificate, at)]).digest()


def _tag(der: bytes, at: int) -> int:
    if at >= len(der):
        raise ValueError("the certificate is cut short")
    return der[at]


def _inside(der: bytes, at: int) -> tuple[int, int]:
    """Return the start and end of the content of the DER element at `at`."""
    if at + 2 > len(der):
        raise ValueError("the certificate is cut short")
    length, start = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise ValueError("not DER")
        length = int.from_bytes(der[start : start + size], "big")
        start += size
    if start + length > len(der):
        raise ValueError("the certificate is cut short")
    return start, start + length


def _end(der: bytes, at: int) -> int:
    return _inside(der, at)[1]
