"""The private certificate authority (CA) that makes a relay safe to use before it has a domain.

Callers trust the CA's certificate (`curl --cacert`, `SSL_CERT_FILE`, `NODE_EXTRA_CA_CERTS`). The
port shows a certificate that the CA has issued, which is renewed without anybody's doing. Nodes
know the relay by its pin, the SHA-256 of that certificate's SubjectPublicKeyInfo, which stays the
same because each certificate has the same key. Keys are EC P-256. No file is touched here.
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
AUTHORITY_LIFETIME: Final = datetime.timedelta(days=3650)  # nobody should have to think of it
LIFETIME: Final = datetime.timedelta(days=800)
"""Of a certificate for the port. Apple's systems refuse more than 825 days."""
RENEW_BEFORE: Final = datetime.timedelta(days=60)
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


def certificates_from_pem(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file. Raises `StoreError`."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise StoreError(f"these certificates cannot be read: {error}") from error


def issue_authority(
    key: PrivateKey, hosts: Iterable[str], now: datetime.datetime
) -> x509.Certificate:
    """A CA's certificate. Of host names it can vouch for those in `hosts`, and for localhost only.

    So a caller that trusts it believes no false certificate for other sites, even if the CA's key
    is stolen (name constraints, RFC 5280 section 4.2.1.10). Addresses are not constrained, because
    BoringSSL, and so Claude Code's runtime, refuses a CA with such a constraint.
    """
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # A caller may trust several relays' CAs: some programs tell them apart by their names only.
    name = _name(f"wai relay CA {key_id.digest.hex()[:16]}")
    return (
        _builder(name, name, key, key_id, now)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.NameConstraints(_subtrees(hosts), None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def issue(
    key: PrivateKey,
    hosts: Iterable[str],
    now: datetime.datetime,
    authority: x509.Certificate,
    authority_key: PrivateKey,
) -> x509.Certificate:
    """A certificate of `authority` for `key`, `hosts` (names and addresses) and this machine."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(_name("wai relay"), authority.subject, key, key_id, now)
        .not_valid_after(min(now + LIFETIME, authority.not_valid_after_utc))
        .add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in _all(hosts)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )


def can_vouch(
    authority: x509.Certificate, key: PrivateKey, hosts: Iterable[str], now: datetime.datetime
) -> bool:
    """Whether a CA's certificate fits its key, allows all `hosts` and lasts a while."""
    try:
        allowed = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return False
    return (
        authority.public_key() == key.public_key()
        and set(allowed.permitted_subtrees or ()) >= set(_subtrees(hosts))
        and authority.not_valid_after_utc - RENEW_BEFORE > now
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey,
    key_id: x509.SubjectKeyIdentifier,
    now: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .add_extension(key_id, critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _all(hosts: Iterable[str]) -> list[str]:
    """`hosts` after this machine's names, each once."""
    return list(dict.fromkeys(_canonical(host) for host in (*ALWAYS_NAMED, *hosts)))


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


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _subtrees(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """The names that a CA is allowed to vouch for; each includes its subdomains."""
    names = [_general_name(host) for host in _all(hosts)]
    return [name for name in names if isinstance(name, x509.DNSName)]


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
