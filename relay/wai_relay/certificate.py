"""The self-signed certificate that makes a relay safe to use before it has a domain.

EC P-256, good for ten years. `relay.crt` is what callers trust (`curl --cacert`, Python's `ssl`,
`NODE_EXTRA_CA_CERTS`); nodes know it by its pin, the SHA-256 of its SubjectPublicKeyInfo, which
stays the same when the certificate is made anew for another host name. No file is touched here.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wai_protocol.errors import StoreError

ALWAYS_NAMED: Final = ("localhost", "127.0.0.1", "::1")
LIFETIME: Final = datetime.timedelta(days=3650)  # nobody should have to think of it
RENEW_BEFORE: Final = datetime.timedelta(days=30)
# A node's clock may be behind; a certificate "from tomorrow" would lock it out.
BACKDATED: Final = datetime.timedelta(days=2)

PrivateKey = ec.EllipticCurvePrivateKey


def generate_key() -> PrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS#8, not encrypted: its file has mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_from_pem(pem: bytes) -> PrivateKey:
    """What `key_to_pem` gave. Raises `StoreError`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise StoreError(f"the relay's TLS key is damaged: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StoreError("the relay's TLS key is not an EC key; it was not made by wai")
    return key


def certificate_from_pem(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM file. Raises `StoreError`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise StoreError(f"this certificate cannot be read: {error}") from error


def issue(key: PrivateKey, hosts: Iterable[str], now: datetime.datetime) -> x509.Certificate:
    """A self-signed certificate for `hosts` (names and addresses) and this machine."""
    # An end-entity certificate, not a CA: it can vouch for nobody else, so trusting it is safe.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wai relay")])
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName(
                [_general_name(h) for h in dict.fromkeys((*ALWAYS_NAMED, *hosts))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(key_id, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def hosts_of(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a certificate is good for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)}


def is_good(
    certificate: x509.Certificate, key: PrivateKey, hosts: Iterable[str], now: datetime.datetime
) -> bool:
    """Whether it fits the key, names all `hosts` and lasts a while."""
    return (
        certificate.public_key() == key.public_key()
        and hosts_of(certificate) >= {_canonical(host) for host in hosts}
        and certificate.not_valid_after_utc - RENEW_BEFORE > now
    )


def pin_of(certificate: x509.Certificate) -> bytes:
    """The SHA-256 of the certificate's SubjectPublicKeyInfo (RFC 7469 section 2.4), 32 bytes."""
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(_canonical(host))


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        try:
            return host.encode("idna").decode().lower()
        except UnicodeError as error:
            raise StoreError(f"{host!r} cannot be named in a certificate: {error}") from error
